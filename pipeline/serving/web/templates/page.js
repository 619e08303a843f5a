"use strict";
const find = id => document.getElementById(id);
const percent = value => (100 * value).toFixed(1) + " %";
let latest = 0, shown = null;

function say(text, isProblem) {
  find("status").textContent = text;
  find("status").className = isProblem ? "problem" : "";
}

function cell(row, tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  row.append(element);
  return element;
}

function score(row, value) {
  const element = cell(row, "td", "");
  const meter = document.createElement("meter");
  meter.max = 1;
  meter.value = value;
  meter.setAttribute("aria-hidden", "true");
  element.append(meter, percent(value));
}

function fill(table, rows, make) {
  const body = find(table).tBodies[0];
  body.replaceChildren(...rows.map(one => {
    const row = document.createElement("tr");
    make(row, one);
    return row;
  }));
}

function showTimeline(segments, seconds) {
  find("when").hidden = !segments || segments.length === 0;
  if (find("when").hidden) return;
  const names = [...new Set(segments.map(one => one.name))];
  const length = Math.max(seconds, 1e-6);
  find("bars").replaceChildren(...segments.map(one => {
    const bar = document.createElement("span");
    bar.className = "color-" + names.indexOf(one.name) % 8;
    bar.style.left = 100 * one.start / length + "%";
    bar.style.width = 100 * (one.end - one.start) / length + "%";
    bar.textContent = one.name;
    bar.title = `${one.name}, ${one.start.toFixed(1)} to ${one.end.toFixed(1)} s, confidence ${percent(one.confidence)}`;
    return bar;
  }));
  find("end").textContent = seconds.toFixed(1) + " s";
  fill("segments", segments, (row, one) => {
    cell(row, "td", one.start.toFixed(1) + " s");
    cell(row, "td", one.end.toFixed(1) + " s");
    cell(row, "th", one.name).scope = "row";
    cell(row, "td", percent(one.confidence));
  });
}

function show(file, answer) {
  const best = answer.classes[0], video = answer.video, seconds = answer.seconds;
  find("name").textContent = file.name;
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  find("video").hidden = false;
  find("video").src = shown;
  find("best").textContent = best.name;
  find("sure").textContent = percent(best.probability);
  find("agreement").textContent = answer.agree
    ? `Both networks say ${answer.primary.name}.`
    : `The networks disagree: the primary says ${answer.primary.name} (${percent(answer.primary.probability)}), ` +
      `the auxiliary ${answer.auxiliary.name} (${percent(answer.auxiliary.probability)}).`;
  find("remark").textContent = answer.note;
  fill("classes", answer.classes, (row, one) => {
    cell(row, "th", one.name).scope = "row";
    score(row, one.probability);
    score(row, one.primary);
    score(row, one.auxiliary);
  });
  showTimeline(answer.timeline, video.seconds);
  find("facts").textContent = `${video.seconds.toFixed(1)} s, ${video.width} x ${video.height}, ${video.codec}; answered in ` +
    `${(seconds.receive + seconds.inspect + seconds.predict).toFixed(1)} s by model ${answer.model.sha256.slice(0, 12)}`;
  find("result").hidden = false;
}

async function ask(file) {
  const number = ++latest;
  const limit = Number(document.body.dataset.bytes);
  if (file.size > limit) {
    say(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB, more than the ${(limit / 2 ** 20)} MiB that are accepted.`, true);
    return;
  }
  const options = new URLSearchParams({top: "5"});
  if (find("timeline").checked) {
    options.set("window", find("window").value + "s");
    options.set("hop", find("hop").value + "s");
  }
  const headers = {"Content-Type": "application/octet-stream"};
  if (find("token")) headers["Authorization"] = "Bearer " + find("token").value;
  say(`Looking at ${file.name} ...`, false);
  find("result").hidden = true;
  try {
    const response = await fetch("predict?" + options, {method: "POST", headers, body: file});
    const answer = await response.json();
    if (number !== latest) return;
    if (response.ok) {
      show(file, answer);
      say("", false);
    } else {
      say(`${file.name}: ${answer.detail}`, true);
    }
  } catch (error) {
    if (number === latest) say(`${file.name}: the server cannot be reached, or ended the upload.`, true);
  }
}

find("video").addEventListener("error", () => { find("video").hidden = true; });
find("form").addEventListener("submit", event => event.preventDefault());
find("file").addEventListener("change", event => {
  const file = event.target.files[0];
  event.target.value = "";
  if (file) ask(file);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    find("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", event => {
  if (!event.relatedTarget) find("drop").classList.remove("over");
});
document.addEventListener("drop", event => {
  event.preventDefault();
  find("drop").classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) ask(file);
});
