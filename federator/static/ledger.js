// The ledger: filtered, newest rows first, page by page; the same as CSV.

import { ask } from "./stream.js";
import { amount, byId, el, say } from "./words.js";

const PROTOCOL = "protocol", UNKNOWN = "(unknown)";
let more = null;
let busy = false;
let stale = false;

function wanted() {
  const form = new FormData(byId("filter"));
  return new URLSearchParams([...form].filter(([name, value]) =>
    (name === "first" || name === "last" ? value !== "" : value !== "*")));
}

const line = (row) => el("tr", {}, ...[
  String(row.round), row.silo || UNKNOWN, row.segment || PROTOCOL, row.direction, amount(row.raw), amount(row.encoded),
  amount(row.wire) + (row.estimated ? " (estimated)" : ""), amount(row.retransmitted), row.seconds.toFixed(2),
].map((text) => el("td", {}, text)));

async function load(next) {
  if (busy) return;
  busy = true;
  try {
    const query = wanted();
    if (next) query.set("before", JSON.stringify(more));
    const found = await (await ask(`api/ledger?${query}`)).json();
    const rows = found.rows.map(line);
    if (next) byId("ledger-rows").append(...rows);
    else {
      byId("ledger-rows").replaceChildren(...rows);
      const sums = found.sums;
      say(byId("sums"), sums === null ? "Too many rows to add up at once; choose fewer rounds." :
        `${sums.rows} rows: ${amount(sums.wire)} on the wire, ${amount(sums.raw)} raw, ${amount(sums.encoded)} encoded, `
        + `${amount(sums.retransmitted)} sent again`);
    }
    more = found.more;
    byId("more").hidden = more === null;
    stale = false;
  } catch (error) {
    say(byId("sums"), error.message);
  } finally {
    busy = false;
  }
}

async function download() {
  try {
    const url = URL.createObjectURL(await (await ask(`api/ledger.csv?${wanted()}`)).blob());
    el("a", { href: url, download: "ledger.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  } catch (error) {
    say(byId("sums"), error.message);
  }
}

function options(select, names) {
  const have = new Set([...select.options].map((option) => option.value));
  for (const [value, text] of names) if (!have.has(value)) select.append(el("option", { value }, text));
}

/** Offer what there is to choose from. */
export function offer(live) {
  const form = byId("filter");
  options(form.silo, [...live.silos.map((silo) => [silo.name, silo.name]), ["", UNKNOWN]]);
  options(form.segment, [...live.segments.map((name) => [name, name]), ["", PROTOCOL]]);
}

/** The rounds have changed: read anew, soon, unless somebody has gone on to older rows. */
export function outdate() {
  const untouched = byId("ledger-rows").children.length <= 100 && byId("ledger-rows").closest(".scroll").scrollTop === 0;
  if (stale || !untouched) return;
  stale = true;
  setTimeout(() => load(false), byId("ledger-rows").children.length ? 3000 : 0);
}

byId("filter").addEventListener("submit", (event) => { event.preventDefault(); load(false); });
byId("filter").addEventListener("change", () => { if (byId("filter").checkValidity()) load(false); });
byId("csv").addEventListener("click", download);
byId("more").addEventListener("click", () => load(true));
