"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = id => document.getElementById(id);
  // In localStorage, at data.place, are entries [id, {status, answer, isNew, by, at}]; a status of "" takes an answer back.
  // Without a server they are all answers to videos of this run; with one, those that it has not saved yet.
  const answers = new Map();  // what this page shows: id -> {status, answer, by, at}
  const added = new Set();  // classes that people added, which the manifest does not have
  let current = 0, isSending = false, retry = 0, changes = 0;

  const say = (text, failed) => { find("saved").textContent = text; find("saved").className = failed ? "failed" : ""; };
  const known = new Set(data.videos.map(video => video.id));
  const kept = () => {
    try { return new Map(JSON.parse(localStorage.getItem(data.place) || "[]")); }
    catch (error) { return new Map(); }  // an earlier page left something else, or storage is forbidden
  };
  const unkept = new Map();  // entries that this browser did not keep
  const write = entries => {
    try { localStorage.setItem(data.place, JSON.stringify([...entries])); return true; }
    catch (error) { say("this browser keeps nothing: download before you close the page", true); return false; }
  };
  const keep = (id, entry) => {  // read again just before, so that other tabs and pages lose nothing
    if (write(kept().set(id, entry))) unkept.delete(id); else unkept.set(id, entry);
  };
  const drop = (id, at) => {
    const entries = kept(), is = entry => entry && entry.at === at;
    if (is(unkept.get(id))) unkept.delete(id);
    if (is(entries.get(id))) { entries.delete(id); write(entries); }
  };
  const pending = () => new Map([...kept(), ...unkept].filter(([id]) => known.has(id)));
  const apply = entries => entries.forEach((entry, id) => {
    const before = answers.get(id);
    if (!known.has(id) || (before && before.at > entry.at)) return;
    if (entry.status) answers.set(id, entry); else answers.delete(id);
    if (entry.status === "class") offer(entry.answer);
  });
  const offer = name => {
    if (data.classes.includes(name) || added.has(name)) return;
    added.add(name);
    find("classes").append(new Option(name, name));
  };

  const send = async () => {
    clearTimeout(retry);
    if (!data.token || isSending) return;
    isSending = true;
    let why = "";
    const failed = new Set();
    for (let next; (next = [...pending()].find(([id]) => !failed.has(id)));) {
      const [id, entry] = next;
      try {
        const reply = await fetch("answers", {method: "POST", headers: {"Content-Type": "application/json", "X-Token": data.token},
          body: JSON.stringify({id, ...entry})});
        if (!reply.ok) throw new Error(await reply.text());
        drop(id, entry.at);
        changes += 1;
      } catch (error) { why = error.message; failed.add(id); }
    }
    isSending = false;
    const open = pending().size;
    if (open) {
      say(open + " not saved: " + (why || "more to send") + "; kept in this browser, and tried again", true);
      retry = setTimeout(send, 3000);
    } else say("saved " + answers.size + " of " + data.videos.length, false);
  };
  const refresh = async first => {
    if (!data.token) { answers.clear(); apply(pending()); return show(); }
    const before = changes;
    try {
      const reply = await fetch("answers", {headers: {"X-Token": data.token}});
      if (!reply.ok) throw new Error(await reply.text());
      const saved = new Map(await reply.json());
      if (changes !== before) return refresh(first);  // an answer was given or saved meanwhile, which may be missing here
      pending().forEach((entry, id) => {  // what the server knows better
        if (saved.has(id) ? saved.get(id).at >= entry.at : !entry.status) drop(id, entry.at);
      });
      answers.clear();
      apply(saved);
    } catch (error) {
      if (first) say("the server does not answer: answers are only in this browser", true);
    }
    apply(pending());
    if (first) begin(); else show();
    if (pending().size) send();
  };

  const take = entry => {
    const id = data.videos[current].id, before = answers.get(id);
    if (before && before.at >= entry.at) entry.at = new Date(Date.parse(before.at) + 1 || Date.now()).toISOString();
    if (entry.status) answers.set(id, entry); else answers.delete(id);
    changes += 1;
    keep(id, entry);
    send();
  };
  const give = (status, answer) => {
    if (status === "class") offer(answer);
    take({status, answer: answer || "", isNew: added.has(answer), by: find("by").value.trim(), at: new Date().toISOString()});
    const open = data.videos.findIndex((other, index) => index > current && !answers.has(other.id));
    current = open >= 0 ? open : Math.min(current + 1, data.videos.length - 1);
    show();
  };
  const clear = () => {
    if (!answers.has(data.videos[current].id)) return;
    take({status: "", answer: "", by: find("by").value.trim(), at: new Date().toISOString()});
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
    const isOffered = given && video.offered.some(([name]) => name === given.answer);
    if (document.activeElement !== find("class")) {
      find("class").value = given && given.status === "class" && !isOffered ? given.answer : "";
    }
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
  try { find("by").value = localStorage.getItem("labeled by") || ""; } catch (error) { /* forbidden */ }
  find("by").onchange = () => {
    try { localStorage.setItem("labeled by", find("by").value.trim()); } catch (error) { /* forbidden */ }
  };
  const other = find("class");
  find("classes").append(...data.classes.map(name => new Option(name, name)));
  other.onkeydown = event => {
    if (event.key === "Escape") { other.blur(); show(); }
    if (event.key !== "Enter" || event.repeat || !data.videos.length) return;
    event.preventDefault();
    const text = other.value, same = one => one.trim().toLowerCase() === text.trim().toLowerCase();
    const names = [...data.classes, ...added];
    const alike = names.includes(text) ? [text] : names.filter(same);
    if (!alike.length && text.trim() && event.shiftKey) alike.push(text.trim());
    if (alike.length !== 1) {
      const remedy = alike.length || !text.trim() ? "" : ": correct it, or add it with Shift and Enter";
      return say("there is no class " + text.trim() + remedy, true);
    }
    other.value = "";
    other.blur();
    say("", false);
    give("class", alike[0]);
  };
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
    if (!video || (event.repeat && !event.key.startsWith("Arrow"))) return;  // a key that is held down answers once
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
  apply(pending());
  begin();
  window.addEventListener("storage", event => { if (event.key === data.place || event.key === null) refresh(false); });
  if (data.token) {
    refresh(true);
    window.addEventListener("focus", () => refresh(false));
  }
})();
