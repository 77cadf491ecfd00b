// What the page shows, and what its buttons do. The server (page.py) has all data and rules.
//
// Text of clients goes only into textContent. A view is drawn over the one before, so that
// whoever reads or types keeps the place.

"use strict";

const EVERY = 1000; // milliseconds between two views
const PATIENCE = 5000; // milliseconds for a response: a fault can meet the page's own connection
const HOUR = 3600e3;
const DAY = 24 * HOUR;
const STEPS = [HOUR, 6 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 28 * DAY, 56 * DAY];
const FARTHEST = 100 * DAY; // the time line shows no more

const get = (id) => document.getElementById(id);

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Words

// Credits come as text: a number of JavaScript would round them.
const number = (value) => BigInt(value).toLocaleString("en");
const plural = (count, word) => `${number(count)} ${word}${BigInt(count) === 1n ? "" : "s"}`;

function duration(milliseconds) {
  const units = [[DAY, "day"], [HOUR, "hour"], [60e3, "minute"]];
  const [unit, word] = units.find(([size]) => milliseconds >= size) ?? units[2];
  return plural(Math.max(1, Math.floor(milliseconds / unit)), word);
}

function date(time, options = { day: "numeric", month: "short" }) {
  return new Date(time).toLocaleString("en-GB", { timeZone: "UTC", ...options });
}

const SECONDS = { dateStyle: "medium", timeStyle: "medium" };
const MINUTES = { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" };

// The time line: all users share one

const LABEL = 56; // the width of a label in pixels
let line = { from: 0, to: 1, now: 0, width: 0 };

function setLine(view) {
  const now = Date.parse(view.now);
  const cycles = view.users.flatMap((user) => user.cycles);
  const ahead = Math.max(2 * DAY, ...cycles.map((it) => Date.parse(it.end) - now));
  const span = Math.min(ahead, FARTHEST);
  const back = Math.max(0, ...cycles.map((it) => now - Date.parse(it.start)));
  const from = now - Math.min(Math.max(back, span * 0.06), span / 2);
  line = { from, to: now + span * 1.06, now, width: get("axis").clientWidth || 700 };
}

const place = (time) => {
  const part = (time - line.from) / (line.to - line.from);
  return `${(100 * Math.min(1, Math.max(0, part))).toFixed(2)}%`;
};

function ticks() {
  const span = line.to - line.from;
  const most = Math.min(8, line.width / LABEL);
  const step = STEPS.find((it) => span / it <= most) ?? STEPS.at(-1);
  const times = [];
  for (let at = Math.ceil(line.from / step) * step; at < line.to; at += step) times.push(at);
  return { times, step };
}

function at(element, time) {
  element.style.setProperty("--at", place(time));
  return element;
}

function drawAxis() {
  const { times, step } = ticks();
  const label = ((line.to - line.from) * LABEL) / line.width;
  const fits = (it) =>
    Math.abs(it - line.now) > 0.8 * label && line.to - it > label / 2 && it - line.from > label / 2;
  const options = step < DAY ? { hour: "2-digit", minute: "2-digit" } : undefined;
  get("axis").replaceChildren(
    ...times.map((it) => at(make("i", "tick"), it)),
    ...times.filter(fits).map((it) => at(make("span", "", date(it, options)), it)),
    at(make("span", "now-word", "now"), line.now),
  );
}

function drawTrack(track, cycle) {
  const start = Date.parse(cycle.start);
  const end = Date.parse(cycle.end);
  const bar = make("div", "bar");
  bar.style.setProperty("--from", place(start));
  bar.style.setProperty("--to", place(end));
  const fill = make("div", "fill");
  const part = Number(cycle.amount) / (Number(cycle.starting_amount) || 1);
  fill.style.setProperty("--part", `${(100 * part).toFixed(2)}%`);
  bar.append(fill);
  const children = [...ticks().times.map((it) => at(make("i", "tick"), it)), bar];
  if (cycle.recurring && !cycle.canceled) {
    const renews = make("i", "renews");
    renews.style.setProperty("--from", place(end));
    children.push(renews);
  }
  track.replaceChildren(...children, at(make("i", "now"), line.now));
}

// Users

const cards = new Map();

function makeCard(id) {
  const card = make("li", "card");
  const head = make("div", "user-head");
  const give = make("button", "", "Give credits");
  give.type = "button";
  give.setAttribute("aria-label", `Give credits to ${id}`);
  give.addEventListener("click", () => {
    get("give-user").value = id;
    get("give-amount").focus();
    get("give-amount").select();
  });
  head.append(make("span", "balance"), make("span", "id", id), give);
  card.append(head, make("ul", "cycles"), make("p", "quiet more"));
  return card;
}

function drawCycle(cycle) {
  const kind = cycle.canceled ? "canceled" : cycle.recurring ? "recurring" : "one-time";
  const item = make("li", `cycle ${kind}`);
  const words = make("p");
  const left = Date.parse(cycle.end) - line.now;
  const verb = cycle.recurring && !cycle.canceled ? "renews" : "expires";
  const ends = make("span", left < 3 * DAY && verb === "expires" ? "ends soon" : "ends");
  ends.textContent = `${verb} in ${duration(left)}, ${date(cycle.end, MINUTES)} UTC`;
  const amounts = `${number(cycle.amount)} of ${number(cycle.starting_amount)}`;
  const name = cycle.canceled ? "recurring, canceled" : kind;
  words.append(make("b", "", amounts), make("span", `tag ${kind}`, name), ends);
  const track = make("div", "track");
  track.setAttribute("aria-hidden", "true");
  drawTrack(track, cycle);
  item.append(words, track);
  return item;
}

function drawUsers(view) {
  const shown = new Set(view.users.map((user) => user.id));
  for (const [id, card] of cards) {
    if (!shown.has(id)) {
      card.remove();
      cards.delete(id);
    }
  }
  // The user who changed last is first when the page opens. Later, cards keep their places.
  const isFirst = cards.size === 0;
  for (const user of isFirst ? view.users : [...view.users].reverse()) {
    let card = cards.get(user.id);
    if (!card) {
      card = makeCard(user.id);
      cards.set(user.id, card);
      if (isFirst) get("users").append(card);
      else get("users").prepend(card);
    }
    setText(card.querySelector(".balance"), number(user.balance));
    card.querySelector(".cycles").replaceChildren(...user.cycles.map(drawCycle));
    const rest = user.all_cycles - user.cycles.length;
    const none = user.all_cycles ? "" : "No active cycle.";
    setText(card.querySelector(".more"), rest ? `${plural(rest, "more cycle")}.` : none);
  }
  const hidden = view.all_users - view.users.length;
  get("more-users").hidden = !hidden;
  setText(get("more-users"), `${plural(hidden, "more user")} changed before these.`);
  setText(get("users-count"), view.all_users ? number(view.all_users) : "");
  get("no-users").hidden = view.all_users > 0;
  get("legend").hidden = view.all_users === 0;
}

// Requests

const rows = new Map();
const CELLS = ["time", "call", "user", "status", "applied", "fault"];

function fillRow(row, request) {
  const time = request.at ? new Date(request.at).toLocaleTimeString("en-GB") : "";
  const status = request.status || (request.pending ? "waiting" : "no response");
  const texts = { ...request, time, status };
  CELLS.forEach((name, index) => {
    const cell = row.cells[index];
    if (name === "applied" || name === "fault") {
      if (cell.textContent === texts[name]) return;
      const color = name === "fault" ? "fault" : texts[name].replace(" ", "-");
      const tag = make("span", `tag ${color}`, texts[name]);
      cell.replaceChildren(...(texts[name] ? [tag] : []));
    } else {
      setText(cell, texts[name]);
    }
  });
  row.cells[3].classList.toggle("wrong", status === "no response" || Number(status) >= 400);
}

function drawRequests(view) {
  const isFirst = rows.size === 0;
  const shown = new Set(view.requests.map((request) => request.number));
  for (const [key, row] of rows) {
    if (!shown.has(key)) {
      row.remove();
      rows.delete(key);
    }
  }
  for (const request of [...view.requests].reverse()) {
    let row = rows.get(request.number);
    if (!row) {
      row = make("tr", isFirst ? "" : "new");
      row.append(...CELLS.map((name) => make("td", name)));
      rows.set(request.number, row);
      get("requests").prepend(row);
    }
    fillRow(row, request);
  }
  const [newest] = view.requests;
  get("scroll").hidden = !newest;
  get("no-requests").hidden = Boolean(newest);
  const all = view.requests.length;
  setText(get("requests-count"), all ? `the last ${all}, newest first` : "");
  if (newest && !newest.pending && !isFirst) {
    const met = newest.fault ? `, fault ${newest.fault}` : "";
    setText(get("newest"), `${newest.call}: ${newest.status || "no response"}, ${newest.applied}${met}`);
  }
}

// Faults

const faults = new Map();

function describeFault() {
  const { does, outcome } = faults.get(get("fault").value);
  const reports = outcome === "succeeds" ? "An add succeeds." : `For an add, a client reports ${outcome}.`;
  setText(get("fault-does"), `The server will ${does}. ${reports}`);
}

async function loadFaults() {
  const groups = { true: make("optgroup"), false: make("optgroup") };
  groups.true.label = "Start with these five";
  groups.false.label = "All others";
  for (const fault of await ask("faults")) {
    faults.set(fault.name, fault);
    const option = make("option", "", `${fault.name}: ${fault.does}`);
    option.value = fault.name;
    groups[fault.first].append(option);
  }
  get("fault").replaceChildren(groups.true, groups.false);
  describeFault();
}

function drawInjected(view) {
  const lines = view.injected.map(({ fault, times, conditional }) => {
    const which = times === null ? "all requests" : times === 1 ? "the next request" : `the next ${times} requests`;
    return `${fault}: ${which}${conditional ? " that a test chose" : ""}`;
  });
  get("injected").replaceChildren(
    ...lines.map((text) => {
      const item = make("li");
      item.append(make("span", "tag fault", text));
      return item;
    }),
  );
  get("none-injected").hidden = lines.length > 0;
  get("clear").hidden = lines.length === 0;
}

// The whole view, again and again

let drawn = "";
let missed = 0;
let timer = 0;
let turn = 0;
let isConnected = true; // the connect block closes once, at the first user

async function ask(path, fields) {
  const settings = { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" };
  if (fields !== undefined) {
    settings.method = "POST";
    settings.headers = { "Content-Type": "application/json" };
    settings.body = JSON.stringify(fields);
  }
  const response = await fetch(`/_page/${path}`, settings);
  const body = await response.json();
  if (!response.ok) throw new Error(body.message);
  return body;
}

function draw(view) {
  setText(get("now"), `${date(view.now, SECONDS)} UTC`);
  get("now").dateTime = view.now;
  get("ahead").hidden = !view.advanced;
  setText(get("ahead"), `${duration(view.advanced * 1000)} ahead`);
  const key = view.has_api_key ? '"$CREDUSE_SANDBOX_API_KEY"' : "any";
  setText(
    get("exports"),
    `export CREDUSE_BASE_URL=${location.origin}\nexport CREDUSE_API_KEY=${key}`,
  );
  // The picture moves by less than a pixel in a second, so it is drawn only with new data, or
  // once a minute.
  const minute = view.now.slice(0, 16);
  const data = JSON.stringify([view.users, view.all_users, view.requests, view.injected, minute]);
  if (data === drawn) return;
  drawn = data;
  get("axis").hidden = view.all_users === 0; // before its width is measured
  if (isConnected && view.all_users) {
    isConnected = false;
    get("connect").open = false;
  }
  const focused = document.activeElement;
  const title = focused.closest("section")?.querySelector("h2");
  setLine(view);
  drawAxis();
  drawUsers(view);
  drawRequests(view);
  drawInjected(view);
  // What had the focus is gone, such as a user's card: whoever uses the keyboard stays nearby.
  if (!focused.checkVisibility()) title?.focus();
}

async function refresh() {
  clearTimeout(timer);
  turn += 1;
  const mine = turn;
  let view;
  try {
    if (!document.hidden) {
      if (!faults.size) await loadFaults();
      view = await ask("view");
    }
    missed = 0;
  } catch {
    missed += 1;
  }
  if (mine !== turn) return; // a later one draws
  timer = setTimeout(refresh, EVERY);
  get("lost").hidden = missed < 2;
  setText(get("lost"), missed < 2 ? "" : "The sandbox does not respond. The page tries again each second.");
  if (view) draw(view);
}

// Actions

async function act(path, fields, done) {
  let text;
  let isWrong = false;
  try {
    await ask(path, fields);
    text = done();
  } catch (error) {
    text = error.message;
    isWrong = true;
  }
  get("said").classList.toggle("wrong", isWrong);
  get("said").textContent = text;
  await refresh();
}

for (const button of document.querySelectorAll("[data-hours]")) {
  const hours = Number(button.dataset.hours);
  button.addEventListener("click", () =>
    act("advance", { hours }, () => `The clock is ${duration(hours * HOUR)} further ahead.`),
  );
}

get("give").addEventListener("submit", (event) => {
  event.preventDefault();
  const user = get("give-user").value.trim();
  const amount = get("give-amount").value.trim();
  const fields = { end_user_id: user, amount, validity_days: get("give-days").value.trim() };
  act("give", fields, () => `${user} got ${plural(amount, "credit")}.`);
});

get("new-user").addEventListener("click", () => {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((it) => it.toString(16).padStart(2, "0")).join("");
  get("give-user").value = hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
});

get("inject").addEventListener("submit", (event) => {
  event.preventDefault();
  const fault = get("fault").value;
  act("inject", { fault }, () => `The next request meets ${fault}.`);
});

get("fault").addEventListener("change", describeFault);
get("clear").addEventListener("click", () => {
  get("fault").focus();
  act("clear", {}, () => "No fault is injected.");
});

for (const button of document.querySelectorAll("[data-copies]")) {
  // Browsers let only pages of this machine, or over https, write to the clipboard.
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(get(button.dataset.copies).textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

window.addEventListener("resize", () => {
  drawn = "";
});
document.addEventListener("visibilitychange", refresh);
refresh();
