"use strict";
// The HTML of each section as received; the displayed HTML differs, because its times are converted.
const received = new Map();
const away = document.getElementById("away");

function localise(part) {
  for (const time of part.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    if (!isNaN(moment)) time.textContent = moment.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  }
}

function sections(root) {
  return [...root.querySelectorAll("section[id]")];
}

function take(section) {
  if (received.get(section.id) === section.innerHTML) return;
  received.set(section.id, section.innerHTML);
  const shown = document.getElementById(section.id);
  if (shown !== section) shown.replaceChildren(...section.childNodes);
  localise(shown);
}

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/content", { signal: AbortSignal.timeout(8000), cache: "no-store" });
    if (answer.status === 401) return location.reload();
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    sections(fresh).forEach(take);
    away.hidden = true;
  } catch {
    away.hidden = false;
  }
}

sections(document).forEach(take);
setInterval(refresh, 5000);
document.addEventListener("visibilitychange", refresh);
