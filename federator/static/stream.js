// The line to the federator: requests with the operator's token, and its events as they come.
// Not EventSource, which can send no Authorization header; a token in an address would end up in logs.

const KEY = "feddiff-token";
let token = sessionStorage.getItem(KEY) || "";

export const signedIn = () => token !== "";

export function keep(text) {
  token = text;
  if (text) sessionStorage.setItem(KEY, text);
  else sessionStorage.removeItem(KEY);
}

export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

/** A response that is fine. Throws Refused with the federator's own sentence. */
export async function ask(path, options = {}) {
  const headers = { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...(options.headers || {}) };
  const response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  if (response.ok) return response;
  let sentence = `the federator answers ${response.status}`;
  try {
    sentence = (await response.json()).error || sentence;
  } catch { /* not one of ours */ }
  throw new Refused(response.status, sentence);
}

const SILENCE_MS = 25000; // the federator says something every 10 s

/** Follow the events for ever; `heard(name, data)`, `state(connected, sentence, status)`. */
export async function follow(heard, state) {
  let pause = 1000;
  for (;;) {
    const stop = new AbortController();
    let timer = setTimeout(() => stop.abort(), SILENCE_MS);
    let status = 0;
    let sentence = "";
    try {
      const response = await ask("api/live", { signal: stop.signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      state(true, "", 200);
      pause = 1000;
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        clearTimeout(timer);
        timer = setTimeout(() => stop.abort(), SILENCE_MS);
        text += value;
        let end;
        while ((end = text.indexOf("\n\n")) >= 0) {
          const [first, second] = text.slice(0, end).split("\n");
          text = text.slice(end + 2);
          heard(first.slice("event: ".length), JSON.parse(second.slice("data: ".length)));
        }
      }
    } catch (error) {
      if (error instanceof Refused) ({ status, message: sentence } = error);
      else if (!(error instanceof TypeError || error.name === "AbortError")) console.error(error);
    }
    clearTimeout(timer);
    stop.abort();
    state(false, sentence, status);
    if (status === 401) return;
    await new Promise((wake) => setTimeout(wake, pause));
    pause = Math.min(pause * 2, 15000);
  }
}
