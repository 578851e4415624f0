// Elements and numbers as people read them. Text becomes text nodes only: nothing here parses HTML.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; strings are text. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same of SVG. */
export function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Set an element's text if it is another: what does not change keeps focus, selection and silence. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const UNITS = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]];

export const unit = (size) => UNITS.find(([scale]) => size >= scale) || [1, "B"];

/** Bytes with three figures, e.g. 1.23 MB. */
export function amount(size) {
  const [scale, symbol] = unit(Math.abs(size));
  const value = size / scale;
  return `${value.toFixed(symbol === "B" ? 0 : Math.max(0, 3 - String(Math.trunc(Math.abs(value))).length))} ${symbol}`;
}

/** A number with three figures. */
export function figure(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

export const times = (whole, part) => (part ? `${figure(whole / part)}×` : "–");

/** Seconds as people say them. */
export function span(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.round(hours / 24)} days`;
}

export const clock = (seconds) =>
  new Date(seconds * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" });

export const METRICS = {
  loss: "training loss", validation_loss: "validation loss", fid: "FID", kid: "KID", precision: "precision",
  recall: "recall", inception_score: "Inception score", class_kl: "class KL",
};
export const metricName = (name) => METRICS[name] || name.replaceAll("_", " ");
