// Requests a prediction from the server, and shows the response.
import { csvOf, drawn, make, read } from "./answer.js";
import { pixelsOf, shadeGrey, tensorOf } from "./pictures.js";

const page = JSON.parse(document.getElementById("page-data").textContent);
const question = document.getElementById("question");
const element = (id) => document.getElementById(id);
const pictures = new Map(); // field id → JSON of the tensor

const MAX_FILE_BYTES = 1024 * 1024;

// ---- the request -------------------------------------------------------------------------------------------------

function isByForm() {
  return document.querySelector("input[name=mode]:checked").value === "form";
}

/** Returns a field's value as JSON text. Numbers are sent as typed, because the browser would round large integers. */
function fieldJson(field) {
  const typed = element(field.id).value;
  const text = typed.trim();
  if (field.kind === "tensor") return pictures.get(field.id) ?? (text || "null");
  if (typed === "" && (field.is_nullable || field.kind !== "string" || field.choices.length)) return "null";
  if (field.kind === "boolean" || field.kind === "number") return text;
  return JSON.stringify(typed);
}

function formBody() {
  const values = page.fields.map((field) => [field, fieldJson(field)]);
  if (page.isTable) {
    const given = values.filter(([field, json]) => field.is_required || json !== "null");
    const names = given.map(([field]) => JSON.stringify(field.name));
    return `{"dataframe_split": {"columns": [${names}], "data": [[${given.map(([, json]) => json)}]]}}`;
  }
  const tensors = values.filter(([field, json]) => !field.is_key || json !== "null");
  if (tensors.length === 1) return `{"inputs": ${tensors[0][1]}}`;
  // A tensor has one value per row, and so has a business id.
  return `{"inputs": {${tensors.map(([field, json]) => `${JSON.stringify(field.name)}: ${field.is_key ? `[${json}]` : json}`)}}}`;
}

/** Returns the body of a request and its content type. */
function asked() {
  if (isByForm()) return [formBody(), "application/json"];
  const text = element("pasted").value;
  const isJson = /^\s*[[{]/.test(text);
  if (!isJson) return [text, "text/csv"];
  // A bare list of rows is valid for /predict/batch, but /invocations needs a name for it.
  return [/^\s*\[/.test(text) ? `{"instances": ${text}}` : text, "application/json"];
}

async function ask() {
  const button = element("ask"); // not `disabled`, which would lose the keyboard focus
  if (button.ariaDisabled) return;
  clear();
  const wrong = page.fields.filter((field) => isByForm() && !element(field.id).validity.valid);
  if (wrong.length) return mark(wrong, (field) => `a ${field.words} is expected`);
  const [body, contentType] = asked();
  const requestId = page.requestId + Math.random().toString(36).slice(2);
  const started = performance.now();
  button.ariaDisabled = "true";
  element("waiting").textContent = "Waiting for the response …";
  element("waiting").hidden = false;
  try {
    const response = await fetch(page.predictionPath, { method: "POST", headers: { "Content-Type": contentType, "X-Request-Id": requestId }, body });
    answered(response, await answerOf(response), performance.now() - started);
  } catch (error) {
    refuse(`No response: ${error.message}.`);
  } finally {
    button.ariaDisabled = null;
  }
}

function answered(response, answer, milliseconds) {
  if (response.ok && answer !== undefined) show(answer);
  else refuse(answer?.message ?? answer?.error ?? `The server answered ${response.status} ${response.statusText}`);
  tell(response.headers, milliseconds);
  const isAtField = document.querySelector("[aria-invalid=true]") !== null;
  if (!isAtField) element("answer-title").closest("section").scrollIntoView({ block: "nearest" }); // On a phone, the section is below the form.
}

/** Returns the JSON document, or undefined if it is not JSON. Server-sent events return a list, shown while it grows. */
async function answerOf(response) {
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) return response.json().catch(() => undefined);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parts = [];
  let rest = "";
  let frame = 0;
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    const events = (rest + piece.value).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event !== "data: [DONE]") parts.push(JSON.parse(event.slice("data: ".length)));
    if (parts.length) frame ||= requestAnimationFrame(() => (show(parts), (frame = 0)));
  }
  cancelAnimationFrame(frame);
  return parts;
}

// ---- a pasted row ------------------------------------------------------------------------------------------------

/** Returns the texts of a pasted row by column, or null if the text is not a row of at least two of the form's columns. */
function pastedRow(text) {
  const fields = page.fields.filter((field) => field.kind !== "tensor");
  const columns = fields.map((field) => field.name);
  let row;
  try {
    // The source of a number keeps digits that the browser would round.
    const typed = (_, value, context) => (typeof value === "number" ? context?.source ?? String(value) : value);
    row = JSON.parse(text, typed);
    if (Array.isArray(row) && row.length === 1) [row] = row;
  } catch {
    const lines = text.replace(/(\r?\n)+$/, "").split(/\r?\n/);
    if (lines.length > 2) return null;
    const [first, second] = lines.map(csvCells);
    row = second ? Object.fromEntries(first.map((name, index) => [name, second[index]])) : first;
    // A sentence with commas is not a row: a row without names has its numbers where the form has them.
    const isNumber = (index) => fields[index]?.kind === "number" && !isNaN(first[index]);
    const isRow = fields.some((field) => field.kind === "number") && fields.every((field, index) => field.kind !== "number" || isNumber(index));
    if (!second && !isRow) return null;
  }
  if (row === null || typeof row !== "object") return null;
  if (Array.isArray(row)) row = row.length === columns.length ? Object.fromEntries(columns.map((name, index) => [name, row[index]])) : {};
  const known = columns.filter((name) => Object.hasOwn(row, name));
  if (known.length < 2) return null;
  return new Map(known.map((name) => [name, row[name] === null || row[name] === undefined ? "" : String(row[name])]));
}

function csvCells(line) {
  if (line.includes("\t")) return line.split("\t").map((cell) => cell.trim()); // from a spreadsheet
  const cells = `,${line}`.matchAll(/,(?:"((?:[^"]|"")*)"|([^,]*))/g);
  return [...cells].map(([, quoted, plain]) => (quoted === undefined ? plain.trim() : quoted.replaceAll('""', '"')));
}

function fill(event) {
  const text = event.clipboardData.getData("text");
  const row = isByForm() && text.length <= MAX_FILE_BYTES ? pastedRow(text) : null;
  if (row === null) return;
  event.preventDefault();
  clear();
  const given = page.fields.filter((field) => row.has(field.name));
  for (const field of given) {
    const value = row.get(field.name);
    element(field.id).value = field.kind === "boolean" ? value.toLowerCase() : value;
  }
  // A list of choices and a date do not take another value.
  const refused = given.filter((field) => element(field.id).value === "" && row.get(field.name) !== "");
  element("filled").textContent = `${given.length - refused.length} of ${page.fields.length} fields have values of the pasted row.`;
  mark(refused, (field) => `the pasted value ${row.get(field.name)} is not possible here`);
}

// ---- the response ------------------------------------------------------------------------------------------------

function clear() {
  element("refusal").hidden = element("told-headers").hidden = element("download").hidden = true;
  element("answer").replaceChildren();
  for (const field of page.fields) {
    element(field.id).removeAttribute("aria-invalid");
    element(`${field.id}-error`).hidden = true;
  }
}

/** Shows the server's error message in the answer, and next to the fields that it mentions. */
function refuse(message) {
  element("waiting").hidden = true;
  element("refusal").textContent = message;
  element("refusal").hidden = false;
  if (!isByForm()) return;
  // The names precede the sent value, which may equal the name of another field.
  const subject = message.split(/, row \d+|: |; /)[0];
  const named = page.fields.filter((field) => /^(the )?(column|tensor|key)/.test(message) && subject.includes(field.quoted_name));
  const wrong = named.length === 0 && message.startsWith("the tensor") ? page.fields : named;
  mark(wrong, () => message);
}

/** Shows the error of each field next to it, and moves the keyboard to the first one. */
function mark(fields, messageOf) {
  for (const field of fields) {
    element(field.id).setAttribute("aria-invalid", "true");
    element(`${field.id}-error`).textContent = messageOf(field);
    element(`${field.id}-error`).hidden = false;
  }
  if (fields.length) element(fields[0].id).focus();
}

function tell(headers, milliseconds) {
  const lines = [
    ["Version", [headers.get("X-Model-Name"), headers.get("X-Model-Version")].filter(Boolean).join(" ")],
    ["Time", `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms, measured by this browser`],
    ["Prediction id", headers.get("X-Prediction-Id")],
    ["Request id", headers.get("X-Request-Id")],
  ];
  const entries = lines.filter(([, value]) => value).flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]);
  element("told-headers").replaceChildren(...entries);
  element("told-headers").hidden = false;
}

function show(answer) {
  const given = read(answer);
  element("waiting").hidden = true;
  element("answer").replaceChildren(drawn(given));
  element("download").onclick = () => {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([csvOf(given)], { type: "text/csv" }));
    link.download = "predictions.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  element("download").hidden = false;
}

// ---- files and images -------------------------------------------------------------------------------------------

async function takeFile(file) {
  if (!file) return;
  if (file.size > MAX_FILE_BYTES) {
    element("file-name").textContent = `${file.name} is larger than 1 MB: send it with curl, as shown in the docs`;
    return;
  }
  element("pasted").value = await file.text();
  element("file-name").textContent = file.name;
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
    taken.textContent = `${file.name} is not an image that this browser can read`;
    return;
  }
  taken.textContent = `${file.name} is sent instead of the numbers`;
  showPicture(field, true);
}

function showPicture(field, isShown) {
  element(`${field.id}-canvas`).hidden = element(`${field.id}-clear`).hidden = !isShown;
  element(field.id).hidden = isShown;
}

// ---- the controls of the page ------------------------------------------------------------------------------------

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
question.addEventListener("paste", fill);
element("file").addEventListener("change", (event) => takeFile(event.target.files[0]));
for (const field of page.fields.filter((entry) => entry.picture)) {
  element(`${field.id}-picture`).addEventListener("change", (event) => takePicture(field, event.target.files[0]));
  element(`${field.id}-clear`).addEventListener("click", () => {
    pictures.delete(field.id);
    element(`${field.id}-picture`).value = "";
    element(`${field.id}-taken`).textContent = "";
    showPicture(field, false);
  });
}
