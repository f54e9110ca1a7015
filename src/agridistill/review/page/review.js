const byId = (id) => document.getElementById(id);
const stage = byId("stage");
const image = byId("photo");
const filter = byId("filter");
const SPECIAL_KEYS = { several: "s", "not a leaf": "n", "cannot tell": "c" };
const RATE_OVER = 30;

let settings = null;
let current = null;
let queue = [];
let left = 0;
let total = 0;
let isShown = false; // whether the photo is on the screen: a key must not judge one that the reviewer has not seen
let isUndoing = false;
let isHalted = false;
const unsent = []; // requests in the order of the reviewer's choices
const decided = new Map(); // id -> photo, of this visit
const times = [];
const ahead = new Map(); // pictures that are loaded in advance

async function asked(path, body) {
  const answer = await fetch(path, {
    method: body ? "POST" : "GET",
    headers: body ? { "Content-Type": "application/json" } : {},
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(20000),
    cache: "no-store",
    keepalive: Boolean(body), // a choice is saved also if the page is closed at once
  });
  if (answer.status === 401) location.reload();
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

async function refill() {
  const held = [current?.id, ...unsent.map((one) => one.body.photo)].filter(Boolean);
  const found = await asked(`/api/queue?held=${held.join(",")}`);
  queue = found.photos.filter((photo) => photo.id !== current?.id && !decided.has(photo.id));
  [left, total] = [found.left - unsent.filter((one) => one.path === "/api/choice").length, found.total];
  const { stage: name, done, total: of } = found.work;
  byId("work").hidden = !name;
  byId("work").textContent = name && `In the background: ${name}, ${done} of ${of}`;
  for (const photo of queue.slice(0, 4)) {
    if (!ahead.has(photo.id)) ahead.set(photo.id, Object.assign(new Image(), { src: `/photos/${photo.id}.jpg` }));
  }
  if (current) showCount();
  else next();
}

function next() {
  show(queue.shift() ?? null);
}

function show(photo) {
  current = photo;
  const isEnd = !photo && !unsent.length && left <= 0;
  byId("main").hidden = !photo;
  byId("end").hidden = !isEnd;
  showCount();
  if (!photo) {
    if (isEnd) say("All photos are judged.");
    return;
  }
  setZoom(false);
  setLook(false);
  setPicture(`/photos/${photo.id}.jpg`);
  ahead.delete(photo.id);
  image.alt = `Photo ${photo.name}`;
  byId("kept").textContent = keptWords(photo.kept);
  byId("name").textContent = byId("kept").textContent ? "" : photo.name; // a kept photo is named by a number
  byId("guess").replaceChildren(...guessNodes(photo));
  filter.value = "";
  showClasses();
}

function setPicture(source) {
  isShown = false;
  image.classList.add("loading");
  byId("missing").hidden = true;
  image.src = source;
}

image.addEventListener("load", () => {
  isShown = true;
  image.classList.remove("loading");
});
image.addEventListener("error", () => {
  isShown = true;
  byId("missing").hidden = false;
});

function showCount() {
  const judged = Math.max(0, total - left);
  const span = times.length > 1 ? (times.at(-1) - times[0]) / 60000 : 0;
  const rate = span > 0 ? ` · ${Math.round((times.length - 1) / span)} per minute` : "";
  byId("count").textContent = `${judged} of ${total}${rate}`;
  byId("progress").max = Math.max(1, total);
  byId("progress").value = judged;
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function bar(probability) {
  const namespace = "http://www.w3.org/2000/svg";
  const drawn = document.createElementNS(namespace, "svg");
  const filled = document.createElementNS(namespace, "rect");
  for (const [key, value] of [["class", "bar"], ["viewBox", "0 0 100 1"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) drawn.setAttribute(key, value);
  filled.setAttribute("width", 100 * probability);
  filled.setAttribute("height", 1);
  drawn.append(filled);
  return drawn;
}

function guessNodes(photo) {
  const nodes = [];
  if (photo.given) nodes.push(element("h2", `Label now: ${photo.given}`));
  if (photo.guess) {
    nodes.push(element("h2", photo.given ? "A model without this photo says" : "The model says"));
    for (const one of photo.guess.top) {
      const row = element("div", "", { class: "top" });
      row.append(element("span", one.words), element("span", one.percent), bar(one.probability));
      nodes.push(row);
    }
    if (photo.guess.note) nodes.push(element("p", photo.guess.note, { class: "note" }));
  }
  if (photo.teacher) nodes.push(element("p", `The teacher says: ${photo.teacher}`));
  return nodes;
}

function keptWords(kept) {
  const when = kept.time && new Date(/^[0-9.]+$/.test(kept.time) ? 1000 * kept.time : kept.time);
  const time = when && !isNaN(when) ? when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : kept.time;
  return [kept.plot && `plot ${kept.plot}`, time, kept.reason].filter(Boolean).join(", ");
}

function showClasses() {
  const wanted = filter.value.trim().toLowerCase();
  const shown = settings.classes.filter((one) => one.words.toLowerCase().includes(wanted));
  const focused = [...document.querySelectorAll("#classes button")].indexOf(document.activeElement);
  byId("classes").replaceChildren(
    ...shown.map(({ label, words }, position) => {
      const key = position < 9 ? String(position + 1) : "";
      return choiceButton(key, words, () => choose("label", label, words));
    }),
  );
  if (focused >= 0) document.querySelectorAll("#classes button")[focused]?.focus();
}

function choiceButton(key, words, act) {
  const item = document.createElement("li");
  const button = element("button", "", { type: "button", ...(key && { "aria-keyshortcuts": key }) });
  button.append(element("kbd", key, { "aria-hidden": "true" }), element("span", words));
  button.addEventListener("click", act);
  item.append(button);
  return item;
}

function say(words) {
  byId("status").textContent = words;
}

function choose(verdict, label, words) {
  if (!current || !isShown || isUndoing || isHalted) return;
  const photo = current;
  decided.set(photo.id, photo);
  times.push(performance.now());
  if (times.length > RATE_OVER) times.shift();
  left -= 1;
  unsent.push({ path: "/api/choice", body: { photo: photo.id, verdict, label } });
  if (document.activeElement === filter) stage.focus();
  next();
  const guess = current?.guess ? ` Next: the model says ${current.guess.top[0].words}, ${current.guess.top[0].percent}.` : "";
  say(`${words}.${guess}`);
  void send();
}

let isSending = false;
async function send() {
  if (isSending) return;
  isSending = true;
  try {
    do {
      while (unsent.length) {
        await asked(unsent[0].path, unsent[0].body);
        unsent.shift();
      }
      isHalted = false;
      byId("trouble").hidden = true;
      if (queue.length < 4) await refill();
    } while (unsent.length); // choices made while the list was loaded
  } catch (error) {
    isHalted = unsent.length > 0;
    byId("trouble").hidden = false;
    byId("trouble").textContent = isHalted
      ? `Not saved, trying again (${unsent.length} waiting): ${error.message}`
      : `All choices are saved. The next photos cannot be loaded, trying again: ${error.message}`;
    setTimeout(send, 3000);
  } finally {
    isSending = false;
  }
}

async function undo() {
  if (isUndoing || isHalted) return;
  isUndoing = true;
  try {
    while (unsent.length || isSending) await new Promise((wake) => setTimeout(wake, 20));
    const last = [...decided.keys()].at(-1) ?? "";
    const { photo } = await asked("/api/undo", { photo: last });
    if (!photo) return say("There is nothing to take back.");
    decided.delete(photo.id);
    times.length = 0;
    left += 1;
    if (current) queue.unshift(current);
    show(photo);
    say("Taken back.");
  } catch (error) {
    say(`Not taken back: ${error.message}`);
    byId("trouble").hidden = false;
    byId("trouble").textContent = `Not taken back: ${error.message}`;
  } finally {
    isUndoing = false;
  }
}

function setZoom(on, x = 0.5, y = 0.5) {
  stage.classList.toggle("zoomed", on);
  byId("zoom").setAttribute("aria-pressed", on);
  stage.scrollTo(on ? x * stage.scrollWidth - stage.clientWidth / 2 : 0, on ? y * stage.scrollHeight - stage.clientHeight / 2 : 0);
}

const isZoomed = () => stage.classList.contains("zoomed");

image.addEventListener("click", (event) => {
  const box = image.getBoundingClientRect();
  setZoom(!isZoomed(), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
});

function setLook(on) {
  byId("look").setAttribute("aria-pressed", on);
  byId("caption").textContent = "";
}

async function look() {
  if (!current || !settings.explains) return;
  const photo = current;
  if (byId("look").getAttribute("aria-pressed") === "true") {
    setLook(false);
    return setPicture(`/photos/${photo.id}.jpg`);
  }
  setLook(true);
  byId("caption").textContent = "computing where the model looked…";
  const source = `/photos/${photo.id}/looked.jpg`;
  const answer = await fetch(source);
  if (photo !== current || byId("look").getAttribute("aria-pressed") !== "true") return;
  if (!answer.ok) {
    byId("caption").textContent = (await answer.text()).trim();
    return;
  }
  byId("caption").textContent = decodeURIComponent(answer.headers.get("X-Caption"));
  say(byId("caption").textContent);
  setPicture(source); // from the browser's cache
}

function typed(event) {
  if (event.ctrlKey && event.key === "z") {
    event.preventDefault();
    return void undo();
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isFiltering = event.target === filter;
  if (isFiltering && event.key === "Escape") {
    filter.value = "";
    showClasses();
    return stage.focus();
  }
  const buttons = document.querySelectorAll("#classes button");
  if (isFiltering && event.key === "Enter") {
    event.preventDefault();
    return buttons[0]?.click();
  }
  if (!byId("keys").checked || (event.target.matches("input") && !isFiltering)) return;
  if (/^[1-9]$/.test(event.key)) {
    event.preventDefault();
    if (!event.repeat) buttons[Number(event.key) - 1]?.click();
    return;
  }
  if (isFiltering) return;
  if (isZoomed() && event.key.startsWith("Arrow")) {
    event.preventDefault();
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    return stage.scrollBy(x * 120, y * 120);
  }
  const special = Object.entries(SPECIAL_KEYS).find(([, key]) => key === event.key)?.[0];
  const act = {
    u: undo,
    z: () => setZoom(!isZoomed()),
    l: look,
    "/": () => filter.focus(),
    ...(special && { [event.key]: () => choose(special, "", special) }),
  }[event.key];
  if (!act || event.repeat) return;
  event.preventDefault();
  void act();
}

async function start() {
  settings = await asked("/api/state");
  byId("folder").textContent = settings.folder;
  byId("reviewer").textContent = settings.reviewer;
  byId("find").hidden = settings.classes.length <= 9;
  byId("classes").classList.toggle("many", settings.classes.length > 9);
  byId("look").hidden = !settings.explains;
  byId("special").replaceChildren(
    ...settings.special.map((one) => choiceButton(SPECIAL_KEYS[one], one, () => choose(one, "", one))),
  );
  await refill();
  setInterval(() => {
    if (!byId("work").hidden || (!current && left > 0)) refill().catch(() => {});
  }, 2000);
}

document.addEventListener("keydown", typed);
filter.addEventListener("input", showClasses);
byId("undo").addEventListener("click", undo);
byId("undo-end").addEventListener("click", undo);
byId("zoom").addEventListener("click", () => setZoom(!isZoomed()));
byId("look").addEventListener("click", look);
addEventListener("beforeunload", (event) => {
  if (unsent.length) event.preventDefault();
});
start().catch((error) => {
  byId("trouble").hidden = false;
  byId("trouble").textContent = `The page cannot be loaded: ${error.message}`;
});
