// Charts as SVG, drawn to the width that there is, with a cursor for pointer and keys, and a table of the same numbers.

import { amount, draw, el, figure, metricName, say, unit } from "./words.js";

const LEFT = 58, RIGHT = 14;

/** About `count` round numbers from low to high. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found;
}

/** Where an axis of these values begins and ends: at zero if they are not far from it. */
function extent(values) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low > 0 && low < 0.4 * high) low = 0;
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [low === 0 ? 0 : low - room, high + room];
}

const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

function axisY(svg, y, marks, width, text) {
  for (const mark of marks) {
    svg.append(
      draw("line", { class: "gridline", x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark) }),
      draw("text", { x: LEFT - 8, y: y(mark) + 4, "text-anchor": "end" }, text(mark)));
  }
}

function axisX(svg, x, marks, y, width, text, title) {
  svg.append(draw("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
  for (const mark of marks) svg.append(draw("text", { x: x(mark), y: y + 16, "text-anchor": "middle" }, text(mark)));
  if (title) svg.append(draw("text", { x: width - RIGHT, y: y + 33, "text-anchor": "end" }, title));
}

const path = (points) => points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/** A figure that redraws itself: `paint(svg, width)` returns its height and where the cursor can stand. */
class Plot {
  constructor(figureNode, title, caption) {
    this.caption = el("span", {}, caption);
    this.keys = el("ul", { class: "keys" });
    this.svg = draw("svg", { "aria-hidden": "true" });
    this.tip = el("div", { class: "tip", role: "status", hidden: "" });
    this.plot = el("div", { class: "plot", tabindex: "0", role: "group" }, this.svg, this.tip);
    this.plot.setAttribute("aria-label", `${title}. Arrow keys move from value to value; a table follows.`);
    this.table = el("table", {});
    figureNode.append(
      el("figcaption", {}, el("strong", {}, title), this.caption), this.plot, this.keys,
      el("details", {}, el("summary", {}, "As a table"),
        el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${title}` }, this.table)));
    this.stops = [];
    this.at = null;
    new ResizeObserver(() => this.paint()).observe(this.plot);
    this.plot.addEventListener("pointermove", (event) => this.near(event));
    this.plot.addEventListener("pointerleave", () => this.point(null));
    this.plot.addEventListener("blur", () => this.point(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
  }

  near(event) {
    const box = this.svg.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    const far = (stop) => Math.abs(stop.x - px) + (stop.y === undefined ? 0 : Math.abs(stop.y - py));
    let best = null;
    this.stops.forEach((stop, at) => { if (best === null || far(stop) < far(this.stops[best])) best = at; });
    this.point(best);
  }

  key(event) {
    const last = this.stops.length - 1;
    const at = this.at === null ? (event.key === "ArrowLeft" ? last + 1 : -1) : this.at;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.point(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.point(Math.min(Math.max(to, 0), last));
  }

  /** Put the cursor on a stop, or away. */
  point(at) {
    this.at = at !== null && at < this.stops.length ? at : null;
    this.cursor?.remove();
    this.tip.hidden = this.at === null;
    if (this.at === null) return;
    const stop = this.stops[this.at], width = this.plot.clientWidth;
    this.cursor = stop.y === undefined
      ? draw("line", { class: "cursor", x1: stop.x, x2: stop.x, y1: 8, y2: this.height - 40 })
      : draw("circle", { class: "dot chosen", cx: stop.x, cy: stop.y, r: 6, "fill-opacity": 0 });
    this.svg.append(this.cursor);
    say(this.tip, stop.text);
    const left = stop.x > width / 2 ? stop.x - this.tip.offsetWidth - 12 : stop.x + 12;
    this.tip.style.left = `${Math.min(Math.max(left, 0), Math.max(width - this.tip.offsetWidth, 0))}px`;
    this.tip.style.top = `${stop.y === undefined ? 12 : Math.max(stop.y - this.tip.offsetHeight - 8, 0)}px`;
  }

  paint() {
    const width = this.plot.clientWidth;
    if (!width || !this.data) return;
    const at = this.at;
    this.svg.replaceChildren();
    this.stops = [];
    this.height = this.lay(width);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.setAttribute("height", this.height);
    this.point(at);
  }

  legend(keys) {
    this.keys.replaceChildren(...keys.map(([kind, text]) => el("li", { class: `key ${kind}` }, text)));
  }

  tell(head, rows) {
    const cells = (tag, row) => row.map((text) => el(tag, tag === "th" ? { scope: "col" } : {}, text));
    this.table.replaceChildren(
      el("thead", {}, el("tr", {}, ...cells("th", head))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells("td", row)))));
  }

  nothing(width, words) {
    this.svg.append(draw("text", { x: width / 2, y: 90, "text-anchor": "middle" }, words));
    this.legend([]);
    this.table.replaceChildren();
    return 180;
  }
}

/** Quality above, bytes below, over the same rounds. */
export class ByRound extends Plot {
  constructor(node) {
    super(node, "By round", "how good the model is, and what each round cost on the wire");
  }

  /** `curves`: {name, kind, points: [[round, value]]}. */
  show(metric, rounds, curves) {
    // What was before the first round (0) is a handful of bytes, unless something went on for long.
    const most = Math.max(...rounds.map((each) => each.down + each.up), 1);
    const seen = rounds.filter((each) => each.round || each.down + each.up > 0.02 * most);
    this.data = { metric, rounds: seen, curves };
    this.paint();
  }

  lay(width) {
    const { metric, rounds, curves } = this.data;
    if (!rounds.length) return this.nothing(width, "No round has begun yet.");
    const first = rounds[0].round, last = rounds.at(-1).round;
    const x = scale(first - 0.6, last + 0.6, LEFT, width - RIGHT);
    const marks = ticks(first, last, Math.max(2, Math.min(10, width / 70))).filter(Number.isInteger);
    const values = curves.flatMap((curve) => curve.points.map((point) => point[1]));
    this.svg.append(draw("text", { class: "title", x: 0, y: 12 }, metricName(metric)));
    if (values.length) {
      const [low, high] = extent(values);
      const y = scale(low, high, 168, 26);
      axisY(this.svg, y, ticks(low, high, 5), width, figure);
      for (const { kind, points } of curves) {
        const places = points.map(([round, value]) => [x(round), y(value)]);
        this.svg.append(draw("path", { class: `curve ${kind}`, d: path(places) }));
        if (kind !== "crowd" && points.length <= 60) {
          for (const [cx, cy] of places) this.svg.append(draw("circle", { class: `dot ${kind}`, cx, cy, r: 4 }));
        }
      }
    } else {
      this.svg.append(draw("text", { x: width / 2, y: 100, "text-anchor": "middle" }, "nothing was measured yet"));
    }
    axisX(this.svg, x, [], 168, width, String, "");
    const most = Math.max(...rounds.map((each) => each.down + each.up), 1);
    const [size, symbol] = unit(most);
    const y = scale(0, most * 1.05, 300, 206);
    this.svg.append(draw("text", { class: "title", x: 0, y: 194 }, `on the wire, ${symbol}`));
    axisY(this.svg, y, ticks(0, most * 1.05, 3), width, (mark) => figure(mark / size));
    const wide = Math.max(1, Math.min(34, (x(1) - x(0)) * 0.72));
    for (const each of rounds) {
      let floor = 0;
      for (const way of ["down", "up"]) {
        const top = y(floor + each[way]);
        const open = each.closed === null ? " open" : "";
        this.svg.append(draw("rect", { class: `bar ${way}${open}`, x: x(each.round) - wide / 2, width: wide, y: top,
          height: Math.max(y(floor) - top, 0) }));
        floor += each[way];
      }
    }
    axisX(this.svg, x, marks, 300, width, String, "round");
    const by = new Map(curves.map((curve) => [curve.name, new Map(curve.points)]));
    const line = (round) => [...by].filter(([, points]) => points.has(round))
      .map(([name, points]) => `${name}: ${figure(points.get(round))}`);
    this.stops = rounds.map((each) => ({ x: x(each.round), text: [
      each.round ? `round ${each.round}${each.closed === null ? " (open)" : ""}` : "before round 1",
      ...line(each.round), `${amount(each.down)} down, ${amount(each.up)} up`].join("\n") }));
    const crowd = curves.filter((curve) => curve.kind === "crowd").length;
    this.legend([...curves.filter((curve) => curve.kind !== "crowd").map((curve) => [curve.kind, curve.name]),
      ...(crowd ? [["crowd", "each silo"]] : []), ["down", "down"], ["up", "up"]]);
    const names = [...by.keys()];
    this.tell(["round", ...names, "down", "up"], rounds.map((each) => [String(each.round),
      ...names.map((name) => figure(by.get(name).get(each.round))), amount(each.down), amount(each.up)]));
    return 340;
  }
}

/** Bytes so far against quality: a point for each round that was measured. */
export class Pareto extends Plot {
  constructor(node) {
    super(node, "Quality for bytes", "each point is a round; the filled ones are beaten by none with fewer bytes");
  }

  /** `points`: {round, sent, value, best}, in order of rounds. */
  show(metric, points, higher) {
    this.data = { metric, points, higher };
    this.paint();
  }

  lay(width) {
    const { metric, points, higher } = this.data;
    if (!points.length) return this.nothing(width, "Nothing was measured yet.");
    const most = Math.max(...points.map((each) => each.sent), 1);
    const [size, symbol] = unit(most);
    const x = scale(0, most * 1.04, LEFT, width - RIGHT);
    const [low, high] = extent(points.map((each) => each.value));
    const y = scale(low, high, 300, 26);
    const better = higher ? "higher is better" : "lower is better";
    this.svg.append(draw("text", { class: "title", x: 0, y: 12 }, `${metricName(metric)}, ${better}`));
    axisY(this.svg, y, ticks(low, high, 6), width, figure);
    axisX(this.svg, x, ticks(0, most * 1.04, Math.max(2, Math.min(8, width / 80))), 300, width,
      (mark) => figure(mark / size), `on the wire so far, both directions, ${symbol}`);
    const best = points.filter((each) => each.best);
    let steps = "";
    best.forEach((each, at) => {
      steps += at ? `H${x(each.sent)}V${y(each.value)}` : `M${x(each.sent)} ${y(each.value)}`;
    });
    if (best.length) this.svg.append(draw("path", { class: "front", d: `${steps}H${width - RIGHT}` }));
    for (const each of points) {
      this.svg.append(draw("circle", { class: `dot ${each.best ? "best" : "beaten"}`, cx: x(each.sent),
        cy: y(each.value), r: points.length > 150 ? 3 : 5 }));
    }
    this.stops = points.map((each) => ({ x: x(each.sent), y: y(each.value), text:
      `round ${each.round}\n${metricName(metric)}: ${figure(each.value)}\n${amount(each.sent)} so far`
      + (each.best ? "\non the front" : "") }));
    this.legend([["best", "not beaten"], ["beaten", "beaten by an earlier round"]]);
    this.tell(["round", "bytes so far", metricName(metric), "on the front"],
      points.map((each) => [String(each.round), amount(each.sent), figure(each.value), each.best ? "yes" : "no"]));
    return 340;
  }
}

/** A line of values, without axes, in a table's cell. */
export function spark(values) {
  const width = 72, height = 16;
  const x = scale(0, Math.max(values.length - 1, 1), 0, width);
  const y = scale(Math.min(...values), Math.max(...values), height, 1);
  const places = values.map((value, at) => [x(at), y(value)]);
  const [cx, cy] = places.at(-1);
  return draw("svg", { class: "spark", width, height, "aria-hidden": "true" },
    draw("path", { d: path(places) }), draw("circle", { cx, cy, r: 2 }));
}
