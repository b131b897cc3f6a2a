// Refreshes the visible charts and figures, and shows the values of a line at the pointer or with the arrow keys.
// There are no animations: new content replaces old content.
"use strict";

const EVERY_MS = 5000, ACTION_MS = 1000, PATIENCE_MS = 15000, POINTS = 100;
const SHARE = 0.05; // The maximum share of MLflow's time for a single reader's page.

// After the end of a session, MLflow responds with 401, and a proxy redirects to its login page. The URL is built from
// the origin, because browsers refuse to fetch a URL that contains a user and a password.
async function get(path) {
  const answer = await fetch(new URL(path, location.origin), { signal: AbortSignal.timeout(PATIENCE_MS), redirect: "manual" });
  if (answer.type === "opaqueredirect" || answer.status === 401) throw new Error("the session has ended: load the page again");
  return answer;
}

class Live {
  constructor(element) {
    this.element = element;
    this.isInSight = false;
    this.dueAt = element.childElementCount ? performance.now() + EVERY_MS : 0;
    this.state = element.parentElement.querySelector("[data-live-state]");
  }

  async refresh() {
    if (!this.isInSight || document.hidden || this.isBusy || performance.now() < this.dueAt || reading === this.element) return;
    this.isBusy = true;
    try {
      const answer = await get(this.element.dataset.live);
      const text = await answer.text();
      if (!answer.ok) throw new Error(answer.headers.get("content-type")?.startsWith("text/plain") ? text : `MLflow returns status ${answer.status}`);
      if (reading !== this.element) this.show(text); // The reader may have started to read values during the request.
      this.say("");
    } catch (error) {
      this.say(`Not up to date since ${this.shownAt ?? "the page was loaded"}: ${error.name === "TypeError" || error.name === "TimeoutError" ? "MLflow does not answer" : error.message}`);
    } finally {
      this.isBusy = false;
      this.dueAt = performance.now() + EVERY_MS;
    }
  }

  show(html) {
    this.shownAt = new Date().toLocaleTimeString();
    const focused = this.element.contains(document.activeElement) ? document.activeElement.id : "";
    const scrolled = [...this.element.querySelectorAll(".row")].map((row) => row.scrollLeft);
    this.element.innerHTML = html; // The server escapes the content, and the page's policy blocks scripts in it.
    this.element.querySelectorAll(".row").forEach((row, index) => { row.scrollLeft = scrolled[index] ?? 0; });
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }

  say(text) {
    if (this.state && this.state.textContent !== text) this.state.textContent = text;
  }
}

// Fetches the page periodically, more often while an action runs, and replaces changed parts unless the reader is using
// them. If parts were added or removed, for example with an endpoint, the page is reloaded.
class Page {
  dueAt = performance.now() + this.wait(0);

  // While an action runs, a reader waits for its result, so the interval is short.
  wait(took) {
    return document.querySelector("[data-running]") ? Math.max(ACTION_MS, took) : Math.max(EVERY_MS, took / SHARE);
  }

  async refresh() {
    if (document.hidden || this.isBusy || performance.now() < this.dueAt) return;
    this.isBusy = true;
    const begun = performance.now();
    try {
      const answer = await get(location.pathname + location.search);
      if (answer.ok || answer.status === 404) this.takeOver(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      // The charts show the error.
    } finally {
      this.isBusy = false;
      this.dueAt = performance.now() + this.wait(performance.now() - begun);
    }
  }

  takeOver(fresh) {
    const html = (part) => part.outerHTML.replace(/name="csrf_token" value="[^"]*"/g, "");
    const parts = [...document.querySelectorAll("[data-part]")];
    const found = new Map([...fresh.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    if (found.size !== parts.length || parts.some((part) => !found.has(part.dataset.part))) {
      if (reading === null && ![...document.querySelectorAll("main, header form")].some(isUsed)) location.reload();
    }
    for (const part of parts) {
      const now = found.get(part.dataset.part);
      if (now && !isUsed(part) && html(now) !== html(part)) part.replaceWith(document.adoptNode(now));
    }
  }
}

// Returns true if a part has the focus, an open form or a changed field.
function isUsed(part) {
  const isChanged = (field) => field.value !== (field.options ? initial(field) : field.defaultValue);
  return part.contains(document.activeElement) || part.matches("details[open]") || part.querySelector("details[open]") !== null || [...part.querySelectorAll("input, select")].some(isChanged);
}

function initial(select) {
  const options = [...select.options];
  return (options.find((option) => option.defaultSelected) ?? options.find((option) => !option.disabled))?.value ?? select.value;
}

document.addEventListener("change", ({ target }) => {
  if (target.name === "to") target.closest("details").querySelector(".effect").textContent = target.selectedOptions[0].dataset.effect;
});

let reading = null; // The element whose chart shows values to the reader; this element is not refreshed.

function readAt(figure, share) {
  const svg = figure.querySelector(".plot svg"), { top, unit, begin, end } = figure.dataset;
  const at = Number(begin) + share * (end - begin), found = [];
  for (const path of svg.querySelectorAll("path[data-name]")) {
    const value = valueAt(path, share * 1000);
    if (value !== null) found.push(`${path.dataset.name} ${short((1 - value / 100) * top)} ${unit}`);
  }
  const tip = figure.querySelector(".tip") ?? figure.querySelector(".plot").appendChild(Object.assign(document.createElement("p"), { className: "tip" }));
  tip.setAttribute("role", "status");
  tip.textContent = [new Date(at * 1000).toLocaleTimeString(), ...found].join("\n");
  const marker = figure.querySelector(".marker") ?? figure.querySelector(".plot").appendChild(Object.assign(document.createElement("i"), { className: "marker" }));
  for (const overlay of [tip, marker]) overlay.style.setProperty("--at", share);
  tip.classList.toggle("to-the-left", share > 0.5);
  figure.dataset.share = share;
  reading = figure.closest("[data-live]");
}

function valueAt(path, x) {
  // Returns the nearest point of the path, or null in a gap.
  let nearest = null;
  for (const [, px, py] of path.getAttribute("d").matchAll(/[ML]([\d.]+) ([\d.]+)/g)) {
    if (nearest === null || Math.abs(px - x) < Math.abs(nearest[0] - x)) nearest = [Number(px), Number(py)];
  }
  return nearest && Math.abs(nearest[0] - x) < 12 ? nearest[1] : null;
}

const short = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3))));

function stopReading(figure) {
  figure.querySelectorAll(".tip, .marker").forEach((overlay) => overlay.remove());
  reading = null;
}

document.addEventListener("pointermove", (event) => {
  const plot = event.target.closest?.(".plot"), svg = plot?.querySelector("svg");
  if (!svg || !svg.querySelector("path[data-name]")) return;
  const box = svg.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
  if (share >= 0 && share <= 1) readAt(plot.closest("figure"), share);
});
document.addEventListener("pointerout", (event) => {
  const figure = event.target.closest?.("figure.chart");
  if (figure && !figure.contains(event.relatedTarget)) stopReading(figure);
});
document.addEventListener("focusout", (event) => {
  if (event.target.matches?.("figure.chart")) stopReading(event.target);
});
document.addEventListener("keydown", (event) => {
  const figure = event.target;
  if (!figure.matches?.("figure.chart") || !figure.querySelector("path[data-name]")) return;
  if (event.key === "Escape") return stopReading(figure);
  const now = Number(figure.dataset.share ?? 1);
  const to = { ArrowLeft: now - 1 / POINTS, ArrowRight: now + 1 / POINTS, Home: 0, End: 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  readAt(figure, Math.min(Math.max(to, 0), 1));
});

const liveParts = new Map([...document.querySelectorAll("[data-live]")].map((element) => [element, new Live(element)]));
const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) liveParts.get(entry.target).isInSight = entry.isIntersecting;
    refreshAll();
  },
  { rootMargin: "200px" },
);
const page = new Page();
const refreshAll = () => {
  liveParts.forEach((live) => live.refresh());
  page.refresh();
};
liveParts.forEach((_, element) => watcher.observe(element));
document.addEventListener("visibilitychange", refreshAll);
setInterval(refreshAll, 1000);
