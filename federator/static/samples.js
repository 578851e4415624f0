// The newest grid of samples, and how it grew: a slider over the rounds, and a strip of some of them.

import { ask } from "./stream.js";
import { byId, el, say } from "./words.js";

const STRIP = 14, KEPT = 160;
const cache = new Map(); // path → promise of an object URL
let grids = [];
let following = true; // the newest, until somebody chooses another

function picture(of, round) {
  const path = `api/grids?${new URLSearchParams({ of, round })}`;
  if (!cache.has(path)) {
    cache.set(path, ask(path).then((response) => response.blob()).then((blob) => URL.createObjectURL(blob)));
    cache.get(path).catch(() => cache.delete(path));
    if (cache.size > KEPT) {
      const [oldest, url] = cache.entries().next().value;
      cache.delete(oldest);
      url.then((each) => URL.revokeObjectURL(each), () => {});
    }
  }
  return cache.get(path);
}

async function put(image, of, round) {
  image.dataset.wanted = `${of} ${round}`;
  try {
    const url = await picture(of, round);
    if (image.dataset.wanted === `${of} ${round}`) image.src = url;
  } catch {
    image.removeAttribute("src");
  }
}

const title = (of) => (of === "" ? "the global model" : of);
const chosen = () => grids.find((each) => each.of === byId("model").value);

function show() {
  const model = chosen();
  if (!model) return;
  const at = Number(byId("grid-round").value), round = model.rounds[at];
  put(byId("grid"), model.of, round);
  byId("grid").alt = `Samples of ${title(model.of)} after round ${round}`;
  byId("grid-round").setAttribute("aria-valuetext", `round ${round}`);
  say(byId("grid-title"), `${title(model.of)} after round ${round}, of ${model.rounds.length} that were drawn`);
  for (const button of byId("film").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(Number(button.dataset.at) === at));
  }
}

function strip(model) {
  const last = model.rounds.length - 1, count = Math.min(STRIP, last + 1);
  const places = [...new Set(Array.from({ length: count }, (_, n) => Math.round((n * last) / Math.max(count - 1, 1))))];
  const film = byId("film"), key = JSON.stringify([model.of, places.map((at) => model.rounds[at])]);
  if (film.dataset.key === key) return;
  film.dataset.key = key;
  film.replaceChildren(...places.map((at) => {
    const image = el("img", { alt: "" });
    put(image, model.of, model.rounds[at]);
    const button = el("button", { type: "button", "data-at": at }, image, `round ${model.rounds[at]}`);
    button.addEventListener("click", () => choose(at));
    return el("li", {}, button);
  }));
}

function choose(at) {
  byId("grid-round").value = at;
  following = at === Number(byId("grid-round").max);
  show();
}

function lay() {
  const model = chosen();
  if (!model) return;
  const slider = byId("grid-round"), last = model.rounds.length - 1;
  slider.max = last;
  slider.disabled = last === 0;
  if (following || Number(slider.value) > last) slider.value = last;
  strip(model);
  show();
}

/** The grids that there are: [{of, rounds}]. */
export function showGrids(found) {
  grids = found;
  byId("no-samples").hidden = found.length > 0;
  byId("album").hidden = found.length === 0;
  const select = byId("model"), before = select.value;
  select.parentElement.hidden = found.length < 2;
  select.replaceChildren(...found.map((each) => el("option", { value: each.of }, title(each.of))));
  if (found.some((each) => each.of === before)) select.value = before;
  lay();
}

byId("model").addEventListener("change", () => { following = true; lay(); });
byId("grid-round").addEventListener("input", (event) => choose(Number(event.target.value)));
