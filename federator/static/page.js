// The page: follows the federator's events and shows them. Every text of a silo goes through textContent.

import { ByRound, Pareto } from "./charts.js";
import { offer, outdate } from "./ledger.js";
import { begin, order, showOrders } from "./operator.js";
import { showGrids } from "./samples.js";
import { showSilos } from "./silos.js";
import { follow, keep, signedIn } from "./stream.js";
import { METRICS, amount, byId, clock, el, figure, metricName, say, span, times } from "./words.js";

const HIGHER = new Set(["precision", "recall", "inception_score", "authentic"]);
const rounds = new Map();
let live = null;
let skew = 0; // seconds that the federator's clock is ahead of this one
let heardAt = 0;

const byRound = new ByRound(byId("by-round"));
const pareto = new Pareto(byId("pareto"));
const ordered = () => [...rounds.values()].sort((one, other) => one.round - other.round);

function head() {
  document.title = `${live.federation}: round ${live.round} of ${live.rounds}`;
  say(byId("federation"), live.federation);
  const phase = live.stopping && live.phase !== "finished" ? "stopping" : live.paused ? "paused" : live.phase;
  byId("phase").hidden = false;
  byId("phase").className = `pill ${phase}`;
  say(byId("phase"), phase);
  say(byId("about"), `plan ${live.policy} · codec ${live.codec} · ${live.parameters.toLocaleString("en")} parameters in `
    + `${live.segments.length} segments`);
  say(byId("now-title"), live.round ? `Round ${live.round} of ${live.rounds}` : `Before round 1 of ${live.rounds}`);
  say(byId("reason"), live.reason);
  say(byId("spoken"), `Round ${live.round} of ${live.rounds}, ${phase}`);
  const done = live.round - (live.opened === null ? 0 : 1);
  byId("progress").max = live.rounds;
  byId("progress").value = done;
  say(byId("rules"), `${live.software} · rules ${live.rules}`);
}

function countdown() {
  if (!live) return;
  for (const [id, estimate] of [["ends", live.ends], ["over", live.over]]) {
    const left = estimate.at === null ? null : estimate.at - (Date.now() / 1000 + skew);
    const words = left === null ? "not known" : left > 0 ? `in about ${span(left)}` : "any moment";
    const node = byId(id);
    node.parentElement.hidden = !estimate.reason;
    if (node.dataset.said !== words + estimate.reason) {
      node.dataset.said = words + estimate.reason;
      node.replaceChildren(left === null ? "" : words, el("small", {}, estimate.reason));
    }
  }
}

function figures() {
  const all = ordered(), closed = all.filter((each) => each.closed);
  const sum = (key) => all.reduce((total, each) => total + (each[key] || 0), 0);
  const [down, up] = [sum("down"), sum("up")];
  const losses = closed.filter((each) => each.loss !== null).map((each) => each.loss);
  const count = (truth) => live.silos.filter((silo) => silo[truth]).length;
  const measured = closed.flatMap((each) => each.quality.map((row) => [each.round, row]));
  const best = ["fid", ...Object.keys(METRICS)].find((name) => measured.some(([, row]) => name in row.values));
  const newest = measured.filter(([, row]) => best in row.values).at(-1);
  const told = [
    [`${count("training")} of ${count("enrolled")}`, `silos training; ${count("reachable")} reachable`],
    [amount(down), "down, on the wire"],
    [amount(up), "up, on the wire"],
    [times(sum("raw"), down + up), "fewer bytes than raw fp32 both ways"],
    [losses.length ? `${figure(losses[0])} → ${figure(losses.at(-1))}` : "–", "mean training loss"],
    ...(newest ? [[figure(newest[1].values[best]), `${metricName(best)}, ${newest[1].model}, round ${newest[0]}`]] : []),
  ];
  const list = byId("figures");
  told.forEach(([value, label], at) => {
    if (!list.children[at]) list.append(el("li", {}, el("strong"), el("span")));
    say(list.children[at].children[0], value);
    say(list.children[at].children[1], label);
  });
  while (list.children.length > told.length) list.lastChild.remove();
}

/** The curves of a metric, by model and by what it was measured against. */
function curvesOf(metric, all) {
  if (metric === "loss") {
    const silos = [...new Set(all.flatMap((each) => Object.keys(each.losses || {})))].sort();
    const points = (read) => all.map((each) => [each.round, read(each)])
      .filter((point) => point[1] !== undefined && point[1] !== null);
    return [
      ...silos.map((name) => ({ name, kind: "crowd", points: points((each) => each.losses?.[name]) })),
      { name: "mean of silos", kind: "", points: points((each) => (each.closed ? each.loss : null)) },
    ].filter((curve) => curve.points.length);
  }
  const found = new Map();
  for (const each of all) for (const row of each.quality) {
    if (!(metric in row.values)) continue;
    const curve = found.get(row.key) || { name: row.model, kind: row.silos ? "means" : "", points: [], basis: row.basis };
    curve.points.push([each.round, row.values[metric]]);
    found.set(row.key, curve);
  }
  const curves = [...found.values()];
  for (const curve of curves) {
    if (curves.filter((other) => other.name === curve.name).length > 1) curve.name = `${curve.name} (${curve.basis})`;
  }
  return curves;
}

function charts() {
  const all = ordered();
  const known = new Set(["loss", ...all.flatMap((each) => each.quality.flatMap((row) => Object.keys(row.values)))]);
  const names = [...Object.keys(METRICS).filter((name) => known.has(name)),
    ...[...known].filter((name) => !(name in METRICS)).sort()];
  const select = byId("metric");
  if (select.dataset.names !== names.join()) {
    const chosen = select.dataset.touched ? select.value : names.includes("fid") ? "fid" : names.at(-1);
    select.dataset.names = names.join();
    select.replaceChildren(...names.map((name) => el("option", { value: name }, metricName(name))));
    select.value = chosen;
  }
  const metric = select.value, curves = curvesOf(metric, all);
  byRound.show(metric, all, curves);
  // The front is of one model and one way to measure it: the newest.
  const shown = metric === "loss" ? curves.filter((curve) => curve.kind === "") : curves;
  const newest = shown.toSorted((one, other) => one.points.at(-1)[0] - other.points.at(-1)[0]).at(-1);
  const value = new Map(newest ? newest.points : []), best = new Set(live?.fronts[metric] || []);
  let sent = 0;
  const points = [];
  for (const each of all) {
    sent += each.down + each.up;
    if (value.has(each.round)) {
      points.push({ round: each.round, sent, value: value.get(each.round), best: best.has(each.round) });
    }
  }
  pareto.show(metric, points, HIGHER.has(metric));
}

function next() {
  say(byId("next-words"), live.next.words);
  const list = byId("next-parts"), key = JSON.stringify(live.next.parts);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...live.next.parts.map(([what, who]) => el("li", {}, el("strong", {}, who.join(", ")), ` ${what}`)));
}

function show() {
  if (!live) return;
  byId("main").hidden = false;
  byId("entrance").hidden = true;
  head();
  countdown();
  figures();
  showSilos(live, ordered(), signedIn(), order);
  next();
  showOrders(live);
  offer(live);
}

function heard(name, data) {
  heardAt = Date.now();
  if (name === "rounds") {
    for (const each of data) rounds.set(each.round, each);
    outdate();
  } else if (name === "grids") {
    showGrids(data);
  } else if (name === "live") {
    skew = data.now - Date.now() / 1000;
    const fronts = JSON.stringify(live?.fronts);
    live = data.live;
    show();
    if (fronts !== JSON.stringify(live.fronts)) charts();
  }
  if (name === "rounds" && live) { figures(); charts(); }
}

function state(connected, sentence, status) {
  const line = byId("line");
  line.className = `line ${connected ? "on" : "off"}`;
  const since = heardAt ? `no answer since ${clock(heardAt / 1000)}; ` : "";
  say(line, connected ? "live" : `${sentence || `${since}the federator does not answer`}; trying again`);
  if (status !== 401) return;
  say(line, "a token is needed");
  byId("main").hidden = true;
  byId("entrance").hidden = false;
  say(byId("entrance").querySelector(".wrong"), signedIn() ? sentence : "");
  byId("entrance-token").focus();
}

byId("metric").addEventListener("change", (event) => { event.target.dataset.touched = "yes"; charts(); });
byId("entrance").addEventListener("submit", (event) => {
  event.preventDefault();
  keep(byId("entrance-token").value.trim());
  byId("entrance-token").value = "";
  location.reload();
});
setInterval(countdown, 1000);
begin(() => show());
rounds.clear();
follow(heard, state);
