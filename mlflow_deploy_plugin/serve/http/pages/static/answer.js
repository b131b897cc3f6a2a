// Shows predictions as tables, bars and CSV. Text from a model is only ever assigned to textContent.

const MAX_ROWS_SHOWN = 100;
const MAX_CLASSES_SHOWN = 5;

export function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Returns the columns, the probabilities and the number of rows of a response. A chat or a prompt lacks `predictions`. */
export function read(answer) {
  const columns = columnsOf(answer?.predictions === undefined ? answer : answer.predictions);
  const rows = columns.reduce((most, [, values]) => Math.max(most, values.length), 0);
  return { columns, probabilities: probabilitiesOf(answer), rows };
}

/** Returns an element for the result of `read`: a single value in large type, several values as a table. */
export function drawn({ columns, probabilities, rows }) {
  const isSingle = rows === 1 && columns.length === 1 && cell(columns[0][1][0]).length <= 40;
  return isSingle ? single(columns[0], probabilities?.[0]) : table(columns, probabilities, rows);
}

/** Returns the result of `read` as CSV. */
export function csvOf({ columns, probabilities, rows }) {
  const classes = probabilities?.[0]?.map(([name]) => name) ?? [];
  const lines = [[...columns.map(([name]) => name), ...classes.map((name) => `probability ${name}`)]];
  for (let row = 0; row < rows; row++) {
    const shares = new Map(probabilities?.[row] ?? []);
    lines.push([
      ...columns.map(([, values]) => csvValue(values[row])),
      ...classes.map((name) => csvValue(shares.get(name))),
    ]);
  }
  return lines.map((line) => line.map(csvField).join(",") + "\r\n").join("");
}

/** Returns predictions as columns: [[name, values], …], one value per row. A Python model may return anything. */
function columnsOf(predictions) {
  if (predictions === null || typeof predictions !== "object") return [["prediction", [predictions]]];
  if (!Array.isArray(predictions)) {
    return Object.entries(predictions).map(([name, values]) => [name, Array.isArray(values) ? values : [values]]);
  }
  const isRecord = (row) => row !== null && typeof row === "object" && !Array.isArray(row);
  if (predictions.length === 0 || !predictions.every(isRecord)) return [["prediction", predictions]];
  const names = new Set(predictions.flatMap((row) => Object.keys(row)));
  return [...names].map((name) => [name, predictions.map((row) => row[name])]);
}

/** Returns [class, probability] pairs per row; null if the model does not return probabilities. */
function probabilitiesOf(answer) {
  return Array.isArray(answer?.probabilities) ? answer.probabilities.map((row) => Object.entries(row)) : null;
}

/** Returns the text of a cell. A list with a single value is shown as the value. */
function cell(value) {
  const plain = Array.isArray(value) && value.length === 1 && !Array.isArray(value[0]) ? value[0] : value;
  if (plain === null || plain === undefined) return "null";
  if (typeof plain === "number") return String(Number.isInteger(plain) ? plain : Number(plain.toPrecision(7)));
  if (typeof plain !== "object") return String(plain);
  const text = JSON.stringify(plain);
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
}

/** Shows the most probable classes as bars. */
function bars(row) {
  const shown = make("div", "bars");
  const most = [...row].sort((a, b) => b[1] - a[1]);
  for (const [name, share] of most.slice(0, MAX_CLASSES_SHOWN)) {
    const line = make("div", "bar-line");
    const label = make("span", "class", name);
    label.title = name;
    const track = make("span", "track");
    const bar = make("span", "share");
    bar.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    track.append(bar);
    line.append(label, track, make("span", "percent", share === null ? "no number" : `${(share * 100).toFixed(1)} %`));
    shown.append(line);
  }
  if (most.length > MAX_CLASSES_SHOWN) shown.append(make("p", "hint", `and ${most.length - MAX_CLASSES_SHOWN} less probable`));
  return shown;
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
  const numbered = rows !== 1;
  const names = [...(numbered ? ["Row"] : []), ...columns.map(([name]) => name), ...(probabilities ? ["Probabilities"] : [])];
  for (const name of names) {
    const title = make("th", "", name);
    title.scope = "col";
    head.append(title);
  }
  const body = make("tbody");
  for (let row = 0; row < Math.min(rows, MAX_ROWS_SHOWN); row++) {
    const line = make("tr");
    if (numbered) line.append(make("td", "row-number", String(row)));
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
  if (rows > MAX_ROWS_SHOWN) frame.append(make("p", "hint", `The first ${MAX_ROWS_SHOWN} of ${rows} rows; the CSV file has all rows.`));
  return frame;
}

function csvValue(value) {
  const plain = Array.isArray(value) && value.length === 1 ? value[0] : value;
  if (plain === null || plain === undefined) return "";
  return typeof plain === "object" ? JSON.stringify(plain) : String(plain);
}

function csvField(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
