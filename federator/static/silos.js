// A row for each silo: its four truths, what it does, what it costs. Rows stay and change in place.

import { spark } from "./charts.js";
import { amount, byId, el, figure, say, span } from "./words.js";

const COLUMNS = ["silo", "enrolled", "reachable", "planned", "training", "doing", "segments", "this round", "so far",
  "link, Mbit/s", "loss"];
const TRUTHS = ["enrolled", "reachable", "planned", "training"];
const TRAIL = 40;
const rows = new Map();

function make(name, order) {
  const row = el("tr", { "data-silo": name });
  const cells = COLUMNS.map((label) => el("td", { "data-label": label }));
  const made = { row, cells, said: {} };
  made.note = el("p", { class: "note" });
  made.facts = el("dl", {});
  made.more = el("button", { type: "button", class: "more", "aria-expanded": "false" }, "more");
  made.about = el("tr", { class: "about", id: `about-${name}`, hidden: "" });
  made.more.setAttribute("aria-controls", `about-${name}`);
  made.more.setAttribute("aria-label", `more about ${name}`);
  made.more.addEventListener("click", () => {
    made.about.hidden = !made.about.hidden;
    made.more.setAttribute("aria-expanded", String(!made.about.hidden));
  });
  made.evict = el("button", { type: "button" }, "Evict …");
  made.reinstate = el("button", { type: "button" }, "Reinstate …");
  made.evict.addEventListener("click", () => order("evict", name));
  made.reinstate.addEventListener("click", () => order("reinstate", name));
  made.desk = el("div", { class: "fields" }, made.evict, made.reinstate);
  cells[0].append(el("span", { class: "name" }, name), " ", made.more, made.note);
  made.about.append(el("td", { colspan: String(COLUMNS.length) }, made.facts, made.desk));
  made.marks = TRUTHS.map((_, at) => {
    const mark = el("span", { class: "mark" });
    cells[at + 1].append(mark);
    return mark;
  });
  made.doing = el("span");
  made.bar = el("progress", { "aria-label": `${name}: steps of its training`, max: "1" });
  cells[5].append(made.doing, made.bar);
  made.pairs = [7, 8, 9].map((at) => {
    const pair = [el("span"), el("small")];
    cells[at].append(...pair);
    return pair;
  });
  made.loss = el("span");
  made.trail = el("span");
  cells[10].append(made.loss, made.trail);
  row.append(...cells);
  return made;
}

function doing(silo) {
  if (!silo.enrolled) return "evicted";
  if (silo.silent !== null) return `not heard for ${span(silo.silent)}`;
  if (!silo.reachable) return silo.samples ? "not here" : "has not joined yet";
  if (silo.committed) return "its update is in";
  if (silo.training && silo.steps) return `training, step ${silo.step}/${silo.steps}`;
  // What it said last may be of the round before.
  if (silo.phase === "done") return silo.planned ? "has yet to begin" : "waits";
  return silo.phase;
}

/** Say it if it is another than before. */
function fresh(made, key, value, act) {
  const text = JSON.stringify(value);
  if (made.said[key] === text) return;
  made.said[key] = text;
  act();
}

function fill(made, silo, live, trail, signedIn) {
  const { row, cells } = made;
  row.classList.toggle("gone", !silo.enrolled);
  TRUTHS.forEach((truth, at) => {
    made.marks[at].classList.toggle("yes", silo[truth]);
    say(made.marks[at], silo[truth] ? "yes" : "no");
  });
  say(made.note, silo.note);
  made.note.hidden = !silo.note;
  say(made.doing, doing(silo));
  made.bar.hidden = !(silo.training && silo.steps && !silo.committed);
  if (!made.bar.hidden) made.bar.value = silo.step / silo.steps;
  say(cells[6], silo.planned ? `${silo.up.length} of ${live.segments.length}` : "–");
  say(made.pairs[0][0], `${amount(silo.now.down)} ↓`);
  say(made.pairs[0][1], `${amount(silo.now.up)} ↑`);
  say(made.pairs[1][0], `${amount(silo.wire.down)} ↓`);
  say(made.pairs[1][1], `${amount(silo.wire.up)} ↑`);
  say(made.pairs[2][0], silo.mbit.down === null ? "– ↓" : `${figure(silo.mbit.down)} ↓`);
  say(made.pairs[2][1], silo.mbit.up === null ? "– ↑" : `${figure(silo.mbit.up)} ↑`);
  say(made.loss, figure(silo.loss));
  fresh(made, "trail", trail, () => made.trail.replaceChildren(...(trail.length > 1 ? [spark(trail)] : [])));
  const labels = Object.entries(silo.labels).map(([label, count]) => `${label}: ${count}`).join(", ");
  const facts = [["images", String(silo.samples)], ["classes", labels], ["plan", silo.plan],
    ["sends", silo.up.join(", ")], ["device", silo.device], ["software", silo.software]];
  fresh(made, "facts", facts, () => made.facts.replaceChildren(
    ...facts.filter((fact) => fact[1]).flatMap(([what, text]) => [el("dt", {}, what), el("dd", {}, text)])));
  made.evict.hidden = !signedIn || !silo.enrolled;
  made.reinstate.hidden = !signedIn || !silo.out;
  // What a glance should catch: another truth, another phase.
  const told = JSON.stringify([TRUTHS.map((truth) => silo[truth]), silo.committed, silo.phase, silo.note]);
  if (made.said.state !== undefined && made.said.state !== told) {
    row.classList.remove("changed");
    void row.offsetWidth;
    row.classList.add("changed");
  }
  made.said.state = told;
}

/** Show the silos; `order(what, silo)` is called for an operator's click. */
export function showSilos(live, rounds, signedIn, order) {
  const body = byId("silo-rows");
  byId("no-silos").hidden = live.silos.length > 0;
  const here = new Set(live.silos.map((silo) => silo.name));
  for (const [name, made] of rows) if (!here.has(name)) {
    made.row.remove();
    made.about.remove();
    rows.delete(name);
  }
  live.silos.forEach((silo, at) => {
    if (!rows.has(silo.name)) rows.set(silo.name, make(silo.name, order));
    const made = rows.get(silo.name);
    const trail = rounds.slice(-TRAIL).map((each) => each.losses?.[silo.name]).filter((value) => value !== undefined);
    fill(made, silo, live, trail, signedIn);
    if (body.children[2 * at] !== made.row) {
      body.insertBefore(made.about, body.children[2 * at] || null);
      body.insertBefore(made.row, made.about);
    }
  });
}
