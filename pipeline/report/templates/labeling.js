"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = id => document.getElementById(id);
  const place = "answers of " + data.run + " " + data.manifest;
  const answers = new Map();  // id -> {status, answer, by, at}
  let current = 0, waiting = Promise.resolve();

  const remember = () => {
    try { localStorage.setItem(place, JSON.stringify([...answers])); }
    catch (error) { say("this browser keeps nothing: download before you close the page", true); }
  };
  const say = (text, failed) => { find("saved").textContent = text; find("saved").className = failed ? "failed" : ""; };

  const known = new Set(data.videos.map(video => video.id));
  const take = entries => entries.forEach(([id, answer]) => { if (known.has(id)) answers.set(id, answer); });
  try { take(JSON.parse(localStorage.getItem(place) || "[]")); find("by").value = localStorage.getItem("labeled by") || ""; }
  catch (error) { /* an earlier page left something else, or storage is forbidden */ }

  const send = (id, answer) => {
    if (!data.token) return;
    waiting = waiting.then(async () => {
      try {
        const reply = await fetch("answers", {method: "POST", headers: {"Content-Type": "application/json", "X-Token": data.token},
          body: JSON.stringify({id, ...answer})});
        if (!reply.ok) throw new Error(await reply.text());
        say("saved " + answers.size + " of " + data.videos.length, false);
      } catch (error) { say("not saved: " + error.message + "; the answers are still in this browser", true); }
    });
  };

  const give = (status, answer) => {
    const video = data.videos[current];
    const given = {status, answer: answer || "", by: find("by").value.trim(), at: new Date().toISOString()};
    answers.set(video.id, given);
    remember();
    send(video.id, given);
    const open = data.videos.findIndex((other, index) => index > current && !answers.has(other.id));
    current = open >= 0 ? open : Math.min(current + 1, data.videos.length - 1);
    show();
  };
  const clear = () => {
    const video = data.videos[current];
    if (!answers.delete(video.id)) return;
    remember();
    send(video.id, {status: "", answer: "", by: "", at: new Date().toISOString()});
    show();
  };
  const move = by => { current = Math.max(0, Math.min(data.videos.length - 1, current + by)); show(); };

  const show = () => {
    find("progress").value = answers.size;
    if (!data.videos.length) { find("position").textContent = "nothing to label"; return; }
    const video = data.videos[current], given = answers.get(video.id);
    find("position").textContent = "video " + (current + 1) + " of " + data.videos.length + ", " + answers.size + " answered";
    find("clip").src = video.clip || "data:,";
    find("clip").alt = video.problem ? "cannot be shown: " + video.problem : "the video, repeated";
    find("about").textContent = video.uri + (video.problem ? ": cannot be shown: " + video.problem : "");
    const list = find("answers");
    list.replaceChildren();
    const why = document.createElement("p");
    why.textContent = video.reason;
    list.append(why);
    video.offered.forEach(([name, share], index) => {
      const button = document.createElement("button"), key = document.createElement("kbd"), part = document.createElement("span");
      key.textContent = index + 1;
      const who = [video.primary[0] === name ? "primary" : "", video.auxiliary[0] === name ? "auxiliary" : ""].filter(Boolean);
      part.className = "share";
      part.textContent = [who.join(" and "), Math.round(100 * share) + " %"].filter(Boolean).join(", ");
      button.append(key, name, part);
      button.setAttribute("aria-pressed", String(!!given && given.status === "class" && given.answer === name));
      button.onclick = () => give("class", name);
      list.append(button);
    });
    ["no_action", "bad_video", "skipped"].forEach(status =>
      find(status).setAttribute("aria-pressed", String(!!given && given.status === status)));
    find("class").value = given && given.status === "class" ? given.answer : "";
  };

  const quote = text => /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  const table = () => ["id,status,class,by,at,run,manifest", ...data.videos.filter(video => answers.has(video.id)).map(video => {
    const given = answers.get(video.id);
    return [video.id, given.status, given.answer, given.by, given.at, data.run, data.manifest].map(quote).join(",");
  })].join("\n") + "\n";

  ["no_action", "bad_video", "skipped"].forEach(status => { find(status).onclick = () => give(status); });
  find("back").onclick = () => move(-1);
  find("forward").onclick = () => move(1);
  find("clear").onclick = clear;
  find("by").onchange = () => { try { localStorage.setItem("labeled by", find("by").value.trim()); } catch (error) { /* forbidden */ } };
  const others = find("class");
  others.append(new Option("", ""), ...data.classes.map(name => new Option(name, name)));
  others.onchange = () => { if (others.value) give("class", others.value); others.blur(); };
  find("download").onclick = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table()], {type: "text/csv"}));
    link.download = "answers.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  document.onkeydown = event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    const video = data.videos[current], number = Number(event.key);
    if (!video) return;
    if (number >= 1 && number <= video.offered.length) give("class", video.offered[number - 1][0]);
    else if (event.key === "n") give("no_action");
    else if (event.key === "b") give("bad_video");
    else if (event.key === "s") give("skipped");
    else if (event.key === "u") clear();
    else if (event.key === "ArrowLeft") move(-1);
    else if (event.key === "ArrowRight") move(1);
    else return;
    event.preventDefault();
  };

  const begin = () => {
    const open = data.videos.findIndex(video => !answers.has(video.id));
    current = open >= 0 ? open : 0;
    show();
  };
  begin();
  if (data.token) fetch("answers", {headers: {"X-Token": data.token}}).then(reply => reply.json()).then(saved => {
    const before = new Map(answers);
    answers.clear();
    take(saved);
    before.forEach((answer, id) => {  // given while no server was there
      if (!answers.has(id) || answers.get(id).at < answer.at) { answers.set(id, answer); send(id, answer); }
    });
    remember();
    begin();
  }).catch(() => say("the server does not answer: answers are only in this browser", true));
})();
