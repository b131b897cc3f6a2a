// Asks the server for a prediction, and shows what it answers. Text from a model only ever becomes textContent.
"use strict";

const told = JSON.parse(document.getElementById("told").textContent);
const question = document.getElementById("question");
const element = (id) => document.getElementById(id);
const pictures = new Map(); // field id → JSON of the tensor

const MAX_ROWS_SHOWN = 100;
const MAX_CLASSES_SHOWN = 5;
const MAX_FILE_BYTES = 1024 * 1024;
const JSON_NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;

// ---- what is asked -----------------------------------------------------------------------------------------------

function isByForm() {
  return document.querySelector("input[name=mode]:checked").value === "form";
}

/** A field's value as JSON text. Numbers stay as they are typed: a browser's own would round large integers. What is
 *  no number is sent as text, so that it is refused in the server's words. */
function fieldJson(field) {
  const typed = element(field.id).value;
  const text = typed.trim();
  if (field.kind === "tensor") return pictures.get(field.id) ?? (text || "null");
  if (typed === "" && (field.is_nullable || field.kind === "number")) return "null";
  if (field.kind === "boolean" || (field.kind === "number" && JSON_NUMBER.test(text))) return text;
  return JSON.stringify(typed);
}

function formBody() {
  const values = told.fields.map((field) => [field, fieldJson(field)]);
  if (told.isTable) {
    const given = values.filter(([field, json]) => field.is_required || json !== "null");
    const names = given.map(([field]) => JSON.stringify(field.name));
    return `{"dataframe_split": {"columns": [${names}], "data": [[${given.map(([, json]) => json)}]]}}`;
  }
  if (values.length === 1) return `{"inputs": ${values[0][1]}}`;
  return `{"inputs": {${values.map(([field, json]) => `${JSON.stringify(field.name)}: ${json}`)}}}`;
}

/** The body of a question and its content type. */
function asked() {
  if (isByForm()) return [formBody(), "application/json"];
  const text = element("pasted").value;
  const isJson = /^\s*[[{]/.test(text);
  if (!isJson) return [text, "text/csv"];
  // a bare list of rows is what /predict/batch takes; /invocations wants it named
  return [/^\s*\[/.test(text) ? `{"instances": ${text}}` : text, "application/json"];
}

async function ask() {
  clear();
  const [body, contentType] = asked();
  const started = performance.now();
  element("ask").disabled = true;
  try {
    const response = await fetch(told.ask, { method: "POST", headers: { "Content-Type": contentType }, body });
    const text = await response.text();
    const milliseconds = performance.now() - started;
    const answer = parsed(text);
    if (response.ok && answer !== undefined) show(answer);
    else refuse(answer?.message ?? answer?.error ?? `The server answered ${response.status} ${response.statusText}`);
    tell(response.headers, milliseconds);
    const isAtField = document.querySelector("[aria-invalid=true]") !== null;
    if (!isAtField) element("answer-title").closest("section").scrollIntoView({ block: "nearest" }); // below, on a phone
  } catch {
    refuse("The server cannot be reached.");
  } finally {
    element("ask").disabled = false;
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// ---- what is shown -----------------------------------------------------------------------------------------------

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function clear() {
  element("refusal").hidden = element("told-headers").hidden = element("download").hidden = true;
  element("answer").replaceChildren();
  for (const field of told.fields) {
    element(field.id).removeAttribute("aria-invalid");
    element(`${field.id}-error`).hidden = true;
  }
}

/** The server's own words: in the answer, and beside the fields that they name. */
function refuse(message) {
  element("waiting").hidden = true;
  element("refusal").textContent = message;
  element("refusal").hidden = false;
  if (!isByForm()) return;
  // the names stand before the value that was sent, which may be called like another field
  const subject = message.split(/, row \d+|: |; /)[0];
  const named = told.fields.filter((field) => /^(the )?(column|tensor)/.test(message) && subject.includes(field.said));
  const wrong = named.length === 0 && message.startsWith("the tensor") ? told.fields : named;
  for (const field of wrong) {
    element(field.id).setAttribute("aria-invalid", "true");
    element(`${field.id}-error`).textContent = message;
    element(`${field.id}-error`).hidden = false;
  }
  if (wrong.length) element(wrong[0].id).focus();
}

function tell(headers, milliseconds) {
  const lines = [
    ["Version", [headers.get("X-Model-Name"), headers.get("X-Model-Version")].filter(Boolean).join(" ")],
    ["Time", `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms, seen from this browser`],
    ["Prediction id", headers.get("X-Prediction-Id")],
    ["Request id", headers.get("X-Request-Id")],
  ];
  const entries = lines.filter(([, value]) => value).flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]);
  element("told-headers").replaceChildren(...entries);
  element("told-headers").hidden = false;
}

/** Predictions as columns: [[name, values], …], one value a row. A model of Python may answer with anything. */
function columnsOf(predictions) {
  if (predictions === null || typeof predictions !== "object") return [["prediction", [predictions]]];
  if (!Array.isArray(predictions)) {
    return Object.entries(predictions).map(([name, values]) => [name, Array.isArray(values) ? values : [values]]);
  }
  const isRecord = (row) => row !== null && typeof row === "object" && !Array.isArray(row);
  if (predictions.length === 0 || !predictions.every(isRecord)) return [["prediction", predictions]];
  return Object.keys(predictions[0]).map((name) => [name, predictions.map((row) => row[name])]);
}

/** [class, probability] of each row; null where the model gives none. */
function probabilitiesOf(answer) {
  return Array.isArray(answer.probabilities) ? answer.probabilities.map((row) => Object.entries(row)) : null;
}

/** A single value in one list is that value. */
function cell(value) {
  const plain = Array.isArray(value) && value.length === 1 && !Array.isArray(value[0]) ? value[0] : value;
  if (plain === null || plain === undefined) return "null";
  if (typeof plain === "number") return String(Number.isInteger(plain) ? plain : Number(plain.toPrecision(7)));
  if (typeof plain !== "object") return String(plain);
  const text = JSON.stringify(plain);
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
}

/** The most probable classes as bars. */
function bars(row) {
  const shown = make("div", "bars");
  const most = row.map(([name, share]) => [name, Number(share)]).sort((a, b) => b[1] - a[1]);
  for (const [name, share] of most.slice(0, MAX_CLASSES_SHOWN)) {
    const line = make("div", "bar-line");
    const label = make("span", "class", name);
    label.title = name;
    const track = make("span", "track");
    const bar = make("span", "share");
    bar.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    track.append(bar);
    line.append(label, track, make("span", "percent", `${(share * 100).toFixed(1)} %`));
    shown.append(line);
  }
  if (most.length > MAX_CLASSES_SHOWN) shown.append(make("p", "hint", `and ${most.length - MAX_CLASSES_SHOWN} less probable`));
  return shown;
}

function show(answer) {
  const columns = columnsOf(answer.predictions);
  const probabilities = probabilitiesOf(answer);
  const rows = columns.reduce((most, [, values]) => Math.max(most, values.length), 0);
  element("waiting").hidden = true;
  const isSingle = rows === 1 && columns.length === 1 && cell(columns[0][1][0]).length <= 40;
  element("answer").append(isSingle ? single(columns[0], probabilities?.[0]) : table(columns, probabilities, rows));
  offer(columns, probabilities, rows);
}

function single([name, values], probabilities) {
  const shown = make("div", "single");
  shown.append(make("p", "hint", name), make("div", "value", cell(values[0])));
  const all = make("div");
  all.append(shown);
  if (probabilities) all.append(bars(probabilities));
  return all;
}

function table(columns, probabilities, rows) {
  const shown = make("table");
  const head = make("tr");
  const names = ["Row", ...columns.map(([name]) => name), ...(probabilities ? ["Probabilities"] : [])];
  for (const name of names) {
    const title = make("th", "", name);
    title.scope = "col";
    head.append(title);
  }
  const body = make("tbody");
  for (let row = 0; row < Math.min(rows, MAX_ROWS_SHOWN); row++) {
    const line = make("tr");
    line.append(make("td", "row-number", String(row)));
    for (const [, values] of columns) line.append(make("td", "", row < values.length ? cell(values[row]) : ""));
    if (probabilities) {
      const chart = make("td");
      chart.append(bars(probabilities[row] ?? []));
      line.append(chart);
    }
    body.append(line);
  }
  const top = make("thead");
  top.append(head);
  shown.append(top, body);
  const frame = make("div", "scroll");
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "Predictions");
  frame.append(shown);
  if (rows > MAX_ROWS_SHOWN) frame.append(make("p", "hint", `The first ${MAX_ROWS_SHOWN} of ${rows} rows; the CSV has them all.`));
  return frame;
}

/** The answers as a CSV to download. */
function offer(columns, probabilities, rows) {
  const classes = probabilities?.[0]?.map(([name]) => name) ?? [];
  const lines = [[...columns.map(([name]) => name), ...classes.map((name) => `probability ${name}`)]];
  for (let row = 0; row < rows; row++) {
    const shares = new Map(probabilities?.[row] ?? []);
    lines.push([
      ...columns.map(([, values]) => csvValue(values[row])),
      ...classes.map((name) => csvValue(shares.get(name))),
    ]);
  }
  const text = lines.map((line) => line.map(csvField).join(",") + "\r\n").join("");
  element("download").onclick = () => {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = "predictions.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  element("download").hidden = false;
}

function csvValue(value) {
  const plain = Array.isArray(value) && value.length === 1 ? value[0] : value;
  if (plain === null || plain === undefined) return "";
  return typeof plain === "object" ? JSON.stringify(plain) : String(plain);
}

function csvField(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// ---- files and pictures ------------------------------------------------------------------------------------------

async function takeFile(file) {
  if (!file) return;
  if (file.size > MAX_FILE_BYTES) {
    element("file-name").textContent = `${file.name} is larger than 1 MB: send it with curl, as the docs show`;
    return;
  }
  element("pasted").value = await file.text();
  element("file-name").textContent = file.name;
}

/** The pixels of a picture, stretched to the tensor's height and width: nothing is cut off. */
async function pixelsOf(file, { width, height }, canvas) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const bitmap = await createImageBitmap(file);
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#000"; // what shows through a transparent picture
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const pixels = context.getImageData(0, 0, width, height);
  return pixels.data;
}

/** One picture as the JSON of a tensor, its batch first. */
function tensorOf(data, { layout, channels, height, width, is_scaled: isScaled }) {
  const value = (row, column, channel) => {
    const at = (row * width + column) * 4;
    const grey = 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2]; // ITU-R BT.601
    const level = channels === 1 ? Math.round(grey) : data[at + channel];
    return isScaled ? Number((level / 255).toFixed(6)) : level;
  };
  const list = (size, entry) => Array.from({ length: size }, (_, index) => entry(index));
  const image = (channel) => list(height, (row) => list(width, (column) => value(row, column, channel)));
  if (layout === "NHW") return JSON.stringify([image(0)]);
  if (layout === "NCHW") return JSON.stringify([list(channels, image)]);
  return JSON.stringify([list(height, (row) => list(width, (column) => list(channels, (channel) => value(row, column, channel))))]);
}

async function takePicture(field, file) {
  if (!file) return;
  const canvas = element(`${field.id}-canvas`);
  const taken = element(`${field.id}-taken`);
  try {
    const data = await pixelsOf(file, field.picture, canvas);
    if (field.picture.channels === 1) shadeGrey(canvas, data);
    pictures.set(field.id, tensorOf(data, field.picture));
  } catch {
    taken.textContent = `${file.name} is not a picture that this browser can read`;
    return;
  }
  taken.textContent = `${file.name} is sent in place of the numbers`;
  showPicture(field, true);
}

function shadeGrey(canvas, data) {
  const context = canvas.getContext("2d");
  const pixels = new ImageData(canvas.width, canvas.height);
  for (let at = 0; at < data.length; at += 4) {
    const grey = Math.round(0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2]);
    pixels.data.set([grey, grey, grey, 255], at);
  }
  context.putImageData(pixels, 0, 0);
}

function showPicture(field, isShown) {
  element(`${field.id}-canvas`).hidden = element(`${field.id}-clear`).hidden = !isShown;
  element(field.id).hidden = isShown;
}

// ---- the page's own controls -------------------------------------------------------------------------------------

for (const choice of document.querySelectorAll("input[name=mode]")) {
  choice.addEventListener("change", () => {
    element("by-form").hidden = !isByForm();
    element("by-paste").hidden = isByForm();
  });
}
question.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.tagName === "TEXTAREA") question.requestSubmit();
});
element("file").addEventListener("change", (event) => takeFile(event.target.files[0]));
for (const field of told.fields.filter((entry) => entry.picture)) {
  element(`${field.id}-picture`).addEventListener("change", (event) => takePicture(field, event.target.files[0]));
  element(`${field.id}-clear`).addEventListener("click", () => {
    pictures.delete(field.id);
    element(`${field.id}-picture`).value = "";
    element(`${field.id}-taken`).textContent = "";
    showPicture(field, false);
  });
}
element("endpoint")?.addEventListener("change", (event) => {
  location.href = "/endpoints/" + event.target.value;
});
