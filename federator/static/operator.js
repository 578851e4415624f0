// What an operator may do, once signed in with a token: each order is asked about first, and noted by the federator.

import { ask, keep, signedIn } from "./stream.js";
import { byId, clock, el, say } from "./words.js";

const QUESTIONS = {
  pause: ["Let the open round end, then open no new one?", "Pause"],
  resume: ["Go on with the rounds?", "Resume"],
  stop: ["Let the open round end, then finish the federation for good?", "Stop it"],
  evict: ["Refuse this silo from now on? Its certificate no longer counts, and its streams are cut.", "Evict"],
  reinstate: ["Take this silo back, which the filter put out, with a clean record?", "Reinstate"],
};
let changed = () => {};

function answer(text, bad = false) {
  byId("answer").classList.toggle("bad", bad);
  say(byId("answer"), text);
}

async function enter() {
  const { operator } = await (await ask("api/operator")).json();
  say(byId("who"), operator);
  byId("sign-in").hidden = true;
  byId("desk").hidden = false;
  changed();
}

function leave(text = "", bad = false) {
  keep("");
  byId("sign-in").hidden = false;
  byId("desk").hidden = true;
  answer(text, bad);
  changed();
}

/** Ask, then order. */
export function order(what, silo = "") {
  const dialog = byId("confirm"), [question, verb] = QUESTIONS[what];
  say(byId("question"), silo ? `${silo}: ${question}` : question);
  say(byId("confirm-yes"), verb);
  byId("reason-label").hidden = what !== "evict";
  byId("order-reason").value = "";
  dialog.returnValue = "no";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    const body = JSON.stringify({ what, silo, reason: byId("order-reason").value });
    try {
      await ask("api/orders", { method: "POST", body, headers: { "Content-Type": "application/json" } });
      answer(`done: ${what}${silo ? ` ${silo}` : ""}`);
    } catch (error) {
      if (error.status === 401) leave(error.message, true);
      else answer(error.message, true);
    }
  };
  dialog.showModal();
}

/** Offer what makes sense now, and tell what was ordered. */
export function showOrders(live) {
  const done = live.phase === "finished" || live.stopping;
  const senseless = { pause: live.paused || done, resume: !live.paused || done, stop: done };
  for (const [what, hidden] of Object.entries(senseless)) {
    byId("desk").querySelector(`[data-order=${what}]`).hidden = hidden;
  }
  const orders = live.orders;
  const list = byId("orders"), key = JSON.stringify(orders);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  byId("no-orders").hidden = orders.length > 0;
  list.replaceChildren(...orders.map((each) => el("li", each.refused ? { class: "refused" } : {},
    `${clock(each.at)}: ${each.operator} ordered ${each.what}${each.silo ? ` ${each.silo}` : ""}`
    + (each.reason ? ` (${each.reason})` : "") + (each.refused ? `; refused: ${each.refused}` : ""))));
}

/** Begin; `reacted` is called whenever somebody signs in or out. */
export function begin(reacted) {
  changed = reacted;
  byId("sign-in").addEventListener("submit", async (event) => {
    event.preventDefault();
    keep(byId("token").value.trim());
    byId("token").value = "";
    try {
      await enter();
      answer("");
    } catch (error) {
      leave(error.message, true);
    }
  });
  byId("sign-out").addEventListener("click", () => { leave("signed out"); location.reload(); });
  for (const button of byId("desk").querySelectorAll("[data-order]")) {
    button.addEventListener("click", () => order(button.dataset.order));
  }
  if (signedIn()) enter().catch(() => leave());
}
