// The page: chats with what is served, and shows what each member had to do with each token.
// All that comes from the server or the user becomes text nodes; nothing is ever parsed as markup.

const PER_FRAME = 250; // tokens put on the page in one animation frame
const COLOURS = 8;
const byId = (id) => document.getElementById(id);
const talk = byId("talk");
const page = {
  models: new Map(), // by served name: its members and its pivot
  turns: [], // of the conversation: the question, and the answers by model
  key: sessionStorage.getItem("tutti-key") ?? "",
  stop: null, // aborts what is running
  follows: true, // whether the conversation scrolls with the answer
  top: 0, // where it was scrolled to last
  cards: new Set(), // answers with something to draw
  frame: false,
};

function make(tag, fields = {}, ...children) {
  const node = Object.assign(document.createElement(tag), fields);
  node.append(...children);
  return node;
}

// ---- The API

class Failure extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

async function request(path, body, signal) {
  const headers = page.key ? { Authorization: `Bearer ${page.key}` } : {};
  const options = { headers, signal, cache: "no-store", credentials: "omit" };
  if (body) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!/^[\x20-\x7e]*$/.test(page.key)) throw new Failure("The API key holds characters that no key may have.", 401);
    throw new Failure("The server cannot be reached; check that it is running.");
  }
  if (!answer.ok) throw await failure(answer);
  return answer;
}

async function failure(answer) {
  const { status } = answer;
  if (status === 401) {
    const sentence = page.key
      ? "The server does not accept this API key."
      : "This server asks for an API key; enter it above.";
    return new Failure(sentence, status);
  }
  const body = await answer.json().catch(() => null);
  const wait = /^\d+$/.test(answer.headers.get("retry-after") ?? "") ? answer.headers.get("retry-after") : null;
  return new Failure(sentenceOf(body?.error, `The server answered with status ${status}.`, wait), status);
}

function sentenceOf(error, otherwise, wait = null) {
  const said = typeof error?.message === "string" && error.message.trim() ? error.message.trim() : otherwise;
  const short = said.length > 300 ? `${said.slice(0, 297)}…` : said;
  if (wait === null || /try again/i.test(short)) return short;
  return `${short.replace(/\.$/, "")}; try again in ${wait} ${wait === "1" ? "second" : "seconds"}.`;
}

async function* chunks(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The connection was lost before the answer ended.");
    }
    if (read.done) throw new Failure("The connection was lost before the answer ended.");
    const lines = (rest + read.value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      let chunk;
      try {
        chunk = JSON.parse(data);
      } catch {
        throw new Failure("The server sent something that is no part of an answer.");
      }
      if (chunk.error) throw new Failure(sentenceOf(chunk.error, "The server failed while it answered."));
      yield chunk;
    }
  }
}

async function loadModels() {
  try {
    const { data } = await (await request("v1/models")).json();
    page.models = new Map(data.map((model) => [model.id, model.fusion ?? { members: [model.id], pivot: model.id }]));
    byId("access").hidden = !page.key;
    tell("");
  } catch (error) {
    tell(error.message);
    if (error.status === 401) askForKey();
  }
  const select = byId("model");
  const chosen = select.value;
  select.replaceChildren(...[...page.models.keys()].map((name) => make("option", { value: name, textContent: name })));
  if (page.models.has(chosen)) select.value = chosen;
  chooseModel();
}

function askForKey() {
  byId("access").hidden = false;
  byId("key").focus();
}

function tell(sentence) {
  byId("notice").textContent = sentence;
}

// ---- What is asked

const chosenModel = () => byId("model").value;
const membersOf = (model) => page.models.get(model)?.members ?? [];
const colour = (members, name) => `m${members.indexOf(name) % COLOURS}`;
const servedMembers = (model) =>
  membersOf(model).length > 1 ? membersOf(model).filter((name) => name !== model && page.models.has(name)) : [];

function chooseModel() {
  const model = chosenModel();
  const members = membersOf(model);
  const compare = byId("compare");
  compare.disabled = !servedMembers(model).length;
  compare.closest("label").title =
    members.length > 1 && compare.disabled ? "The members are not served by themselves (serve_models)." : "";
  byId("members").replaceChildren(...(members.length > 1 ? members.map((name) => legend(members, name)) : []));
  byId("send").disabled = !model;
}

function conversation(model, question, chosen) {
  const messages = [];
  for (const turn of page.turns) {
    const answer = turn.answers.get(model) ?? turn.answers.get(turn.chosen) ?? "";
    if (answer) messages.push({ role: "user", content: turn.question }, { role: "assistant", content: answer });
  }
  return [...messages, { role: "user", content: question }];
}

async function send(question) {
  const chosen = chosenModel();
  const names = [chosen, ...(byId("compare").checked && !byId("compare").disabled ? servedMembers(chosen) : [])];
  const bodies = names.map((model) => requestBody(model, conversation(model, question)));
  const turn = { question, chosen, answers: new Map() };
  page.turns.push(turn);
  const cards = names.map((name) => newCard(name, chosen));
  byId("welcome").hidden = true;
  const shown = make(
    "div",
    { className: names.length > 1 ? "turn compared" : "turn" },
    make("div", { className: "asked", dir: "auto", textContent: question }),
    make("div", { className: "answers" }, ...cards.map((card) => card.node)),
  );
  talk.append(shown);
  grown.observe(shown);
  page.follows = true;
  follow();
  tell("");
  running(new AbortController());
  await Promise.all(
    cards.map(async (card, index) => {
      await answer(card, bodies[index], page.stop.signal);
      turn.answers.set(card.model, card.content);
    }),
  );
  running(null);
  byId("status").textContent = cards.some((card) => card.failed) ? "The answer failed." : "The answer is complete.";
}

function requestBody(model, messages) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  const temperature = byId("temperature").valueAsNumber;
  const limit = byId("limit").valueAsNumber;
  if (!Number.isNaN(temperature)) body.temperature = temperature;
  if (!Number.isNaN(limit)) body.max_tokens = limit;
  if (membersOf(model).length > 1) body.fusion = { report: true };
  return body;
}

async function answer(card, body, signal) {
  const began = performance.now();
  try {
    for await (const chunk of chunks(await request("v1/chat/completions", body, signal))) {
      card.usage = chunk.usage?.completion_tokens ?? card.usage;
      const choice = chunk.choices?.[0];
      if (choice) take(card, choice, performance.now() - began);
    }
  } catch (error) {
    if (error.name === "AbortError") card.finish = "stopped";
    else fail(card, error);
  }
  card.seconds = (performance.now() - began) / 1000;
  card.ended = true;
  draw(card);
}

function fail(card, error) {
  const known = error instanceof Failure;
  if (!known) console.error(error);
  card.failed = known ? error.message : "The page could not show this answer.";
  if (error.status === 401) askForKey();
}

function running(controller) {
  page.stop = controller;
  byId("send").hidden = controller !== null;
  byId("stop").hidden = controller === null;
  byId("fresh").disabled = controller !== null;
}

// ---- An answer

function newCard(model, chosen) {
  const members = membersOf(model);
  const name = make("bdi", { className: "name", textContent: model, title: model });
  const state = make("p", { className: "hint", textContent: "waiting" });
  const text = make("div", { className: "text waiting" });
  const foot = make("div", { className: "foot" });
  const node = make("article", { className: "answer" }, make("h3", {}, name), state, text, foot);
  if (model !== chosen) node.classList.add("member", colour(membersOf(chosen), model));
  node.setAttribute("aria-label", `Answer of ${model}`);
  const card = { model, members, node, state, text, foot, line: null, content: "", pending: [], rounds: [] };
  Object.assign(card, { tokens: 0, usage: null, first: 0, seconds: 0, finish: null, ended: false, failed: null, totals: new Map() });
  text.card = card;
  return card;
}

function take(card, choice, milliseconds) {
  const { delta = {}, fusion } = choice;
  const thought = delta.reasoning ?? "";
  card.content += delta.content ?? "";
  if (choice.finish_reason) {
    card.finish = choice.finish_reason;
    card.departed = fusion?.departed ?? {};
    card.weighting = fusion?.weighting ?? null;
  } else if (fusion?.rounds) {
    for (const round of fusion.rounds) card.pending.push({ text: round.text, round, thought: Boolean(thought) });
  } else if (delta.content || thought) {
    card.pending.push({ text: thought + (delta.content ?? ""), round: null, thought: Boolean(thought) });
  }
  if (!card.first && card.pending.length) card.first = milliseconds;
  draw(card);
}

function draw(card) {
  page.cards.add(card);
  if (page.frame) return;
  page.frame = true;
  if (document.hidden) setTimeout(drawAll, 100); // hidden pages have no frames
  else requestAnimationFrame(drawAll);
}

function drawAll() {
  page.frame = false;
  const cards = [...page.cards];
  page.cards.clear();
  const share = Math.ceil(PER_FRAME / cards.length);
  for (const card of cards) {
    for (const piece of card.pending.splice(0, share)) add(card, piece);
    describe(card);
    if (card.pending.length) draw(card);
  }
}

// Lines are laid out, and so get their height, only when they are near to what is seen: after a frame has been drawn.
// So the end is followed whenever anything changes its size, and what stops that is that somebody scrolls up.
const grown = new ResizeObserver(follow);

function follow() {
  if (page.follows) talk.scrollTop = talk.scrollHeight;
}

function scrolled() {
  const left = talk.scrollHeight - talk.scrollTop - talk.clientHeight;
  if (left < 48) page.follows = true;
  else if (talk.scrollTop < page.top) page.follows = false;
  page.top = talk.scrollTop;
}

function add(card, { text, round, thought }) {
  card.tokens += 1;
  if (round !== null && hasShares(round)) {
    for (const [name, share] of Object.entries(round.contribution)) {
      card.totals.set(name, (card.totals.get(name) ?? 0) + share);
    }
  }
  if (!text) return; // an end, or part of a character
  if (card.line === null) {
    card.line = make("div", { className: "line", dir: "auto" });
    card.text.append(card.line);
  }
  if (round === null) {
    card.line.append(text);
  } else {
    const [leader, lead] = leading(round);
    const node = make("span", { textContent: text, tabIndex: card.rounds.length ? -1 : 0 });
    node.className = `token ${colour(card.members, leader)} ${lead}${thought ? " thought" : ""}${/^\s*\n\s*$/.test(text) ? " newline" : ""}`;
    node.place = card.rounds.push({ ...round, node, place: card.tokens }) - 1;
    card.line.append(node);
  }
  if (text.includes("\n")) card.line = null;
}

// A sum of log-probabilities has terms in nats in their place.
function hasShares(round) {
  const shares = Object.values(round.contribution);
  const sum = shares.reduce((total, share) => total + share, 0);
  return shares.every((share) => share >= 0) && (sum === 0 || Math.abs(sum - 1) < 0.01);
}

const amount = (round, value) => (hasShares(round) ? percent(value) : `${value.toFixed(2)} nats`);

function leading(round) {
  const sorted = Object.entries(round.contribution).sort((a, b) => b[1] - a[1]);
  const [leader, most] = sorted[0] ?? ["", 0];
  const next = sorted[1]?.[1] ?? -Infinity;
  return [leader, most - next < 0.1 ? "slight" : hasShares(round) && most >= 0.8 ? "strong" : "", most];
}

function describe(card) {
  card.text.classList.toggle("waiting", !card.ended);
  const parts = [];
  const tokens = card.usage ?? (card.rounds.length ? card.tokens : 0);
  if (tokens) parts.push(tokens === 1 ? "1 token" : `${tokens} tokens`);
  if (card.first) parts.push(`first after ${(card.first / 1000).toFixed(2)} s`);
  if (card.ended && tokens && card.seconds > 0) parts.push(`${(tokens / card.seconds).toFixed(1)} per second`);
  if (card.finish === "length") parts.push("cut at the limit");
  if (card.finish === "stopped") parts.push("stopped");
  card.state.textContent = parts.join(" · ") || (card.ended ? "no text" : "waiting");
  if (!card.ended || card.pending.length) return;
  card.foot.replaceChildren();
  if (card.totals.size) card.foot.append(...shares(card));
  for (const [name, reason] of Object.entries(card.departed ?? {})) {
    card.foot.append(make("p", { className: "hint", textContent: `${name} left: ${reason}` }));
  }
  if (card.weighting) {
    const weights = Object.entries(card.weighting.weights).map(([name, weight]) => `${name} ${percent(weight)}`);
    card.foot.append(
      make("p", { className: "hint", textContent: `Weights by ${card.weighting.method}: ${weights.join(", ")}.` }),
    );
  }
  if (card.failed) card.foot.append(make("p", { className: "error", role: "alert", textContent: card.failed }));
}

function shares(card) {
  const sum = [...card.totals.values()].reduce((total, share) => total + share, 0) || 1;
  const bar = make("div", { className: "shares" });
  bar.setAttribute("aria-hidden", "true");
  const list = make("ul", { className: "legend" });
  list.setAttribute("aria-label", "Shares of the whole answer");
  for (const name of card.members) {
    const share = (card.totals.get(name) ?? 0) / sum;
    const part = make("i", { className: colour(card.members, name) });
    part.style.flexGrow = share;
    bar.append(part);
    list.append(legend(card.members, name, percent(share)));
  }
  return [bar, list];
}

function legend(members, name, value = "") {
  const item = make("li", { title: name }, make("span", { className: `swatch ${colour(members, name)}` }));
  item.append(make("bdi", { textContent: name }));
  if (value) item.append(make("span", { textContent: value }));
  return item;
}

const percent = (value) => (value > 0 && value < 0.005 ? "<1 %" : `${Math.round(100 * value)} %`);

// ---- A token

let shown = null;

function inspect(token) {
  const card = token.closest(".text").card;
  const round = card.rounds[token.place];
  if (shown) shown.classList.remove("shown");
  shown = token;
  token.classList.add("shown");
  const [leader, , most] = leading(round);
  token.setAttribute("aria-description", `${amount(round, most)} from ${leader}`);
  const visible = round.text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
  const about = `Token ${round.place} of ${card.tokens}, id ${round.token}; ${round.drafted ? "drafted" : "not drafted"}`;
  const head = make("tr", {});
  for (const [title, kind] of [["Member", ""], ["Share", "number"], ["Weight", "number"], ["Mass", "number"]]) {
    head.append(make("th", { scope: "col", className: kind, textContent: title }));
  }
  head.children[2].title = "The member's weight in this round";
  head.children[3].title = "How much of the member's probability its vocabulary map carried over";
  const body = make("tbody");
  for (const name of card.members) body.append(...rowsOf(card, round, name));
  byId("inspector").replaceChildren(
    make("h2", { dir: "auto", textContent: visible }),
    make("p", { className: "hint", textContent: about }),
    make("table", {}, make("thead", {}, head), body),
  );
}

function rowsOf(card, round, name) {
  const voted = Object.hasOwn(round.weights, name); // a member may be called "constructor"
  const share = Object.hasOwn(round.contribution, name) ? round.contribution[name] : 0;
  const label = make("span", { title: name }, make("span", { className: `swatch ${colour(card.members, name)}` }));
  label.append(make("bdi", { textContent: name }));
  const row = make("tr", {}, make("th", { scope: "row" }, label));
  const weight = round.weights[name];
  const values = voted
    ? [amount(round, share), hasShares(round) ? percent(weight) : weight.toFixed(2), percent(round.mass[name])]
    : ["–", "–", "–"];
  for (const value of values) row.append(make("td", { className: "number", textContent: value }));
  const fill = make("i", { className: colour(card.members, name) });
  fill.style.width = hasShares(round) ? `${100 * share}%` : "0";
  const role = make("td", { colSpan: 4 }, make("div", { className: "bar" }, fill), roleOf(round, name));
  return [row, make("tr", { className: "role" }, role)];
}

function roleOf(round, name) {
  if (!Object.hasOwn(round.weights, name)) return "Not asked in this round";
  const taken = round.rolled_back[name];
  const back = taken ? `, took back ${taken} ${taken === 1 ? "token" : "tokens"}` : "";
  return (round.kept[name] ? "Took part" : "Filtered out") + back;
}

function move(token, key) {
  const { rounds } = token.closest(".text").card;
  const steps = { ArrowRight: token.place + 1, ArrowLeft: token.place - 1, Home: 0, End: rounds.length - 1 };
  const next = rounds[steps[key]]?.node;
  if (!next) return false;
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  return true;
}

// ---- Events

const tokenOf = (event) => event.target.closest?.(".token");

talk.addEventListener("pointerover", (event) => tokenOf(event) && inspect(tokenOf(event)));
talk.addEventListener("focusin", (event) => tokenOf(event) && inspect(tokenOf(event)));
talk.addEventListener("keydown", (event) => {
  const token = tokenOf(event);
  if (token && !event.ctrlKey && !event.metaKey && !event.altKey && move(token, event.key)) event.preventDefault();
});
talk.addEventListener("scroll", scrolled);
grown.observe(talk);
byId("model").addEventListener("change", chooseModel);
byId("stop").addEventListener("click", () => page.stop?.abort());
byId("fresh").addEventListener("click", () => {
  page.turns = [];
  for (const turn of talk.querySelectorAll(".turn")) {
    grown.unobserve(turn);
    turn.remove();
  }
  byId("welcome").hidden = false;
  byId("question").focus();
});
byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  page.key = byId("key").value.trim();
  sessionStorage.setItem("tutti-key", page.key);
  loadModels();
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("composer").requestSubmit();
});
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (!question || page.stop || !chosenModel()) return;
  byId("question").value = "";
  send(question);
});

byId("key").value = page.key;
loadModels();
