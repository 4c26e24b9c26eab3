"use strict";

const byId = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const state = { token: "", models: [], limits: {}, files: [], answer: null, request: null };

function headers() {
  return state.token ? { Authorization: `Bearer ${state.token}` } : {};
}

function model() {
  return state.models.find((item) => item.name === byId("model").value);
}

function say(text) {
  byId("error").textContent = text;
  byId("error").hidden = !text;
}

async function start() {
  say("");
  let response;
  try {
    response = await fetch("/v1/studies", { headers: headers() });
  } catch {
    say("The server does not answer. Check that it is running, then reload this page.");
    return;
  }
  if (response.status === 401) {
    byId("model-line").textContent = "This server needs a token.";
    byId("token-form").hidden = false;
    if (state.token) say("The token is wrong.");
    byId("token").focus();
    return;
  }
  if (!response.ok) {
    say(`The server answered with status ${response.status}. Reload this page later.`);
    return;
  }
  const { models, limits } = await response.json();
  Object.assign(state, { models, limits });
  byId("token-form").hidden = true;
  byId("choices").hidden = byId("drop").hidden = false;
  const megabytes = Math.floor(limits.body_bytes / 2 ** 20);
  byId("limits").textContent =
    `PNG, JPEG, TIFF or DICOM; up to ${limits.files} files and ${megabytes} MB. Nothing is stored.`;
  byId("model").replaceChildren(...models.map((item) => new Option(item.name, item.name)));
  byId("model-field").hidden = models.length < 2;
  chooseModel();
}

function rules(item) {
  const points = item.operating_points.map((point) => ({ ...point }));
  if (item.rule !== null && !points.some((point) => point.rule === item.rule)) {
    points.unshift({ rule: item.rule, threshold: item.threshold });
  }
  return points;
}

function chooseModel() {
  const item = model();
  if (!item) return;
  const area = item.area && item.area !== item.name ? `, ${item.area}` : "";
  byId("model-line").textContent = `${item.name}, version ${item.version}${area}: ${item.classes.join(" or ")}`;
  const points = rules(item);
  byId("rule").replaceChildren(
    ...points.map((point) => new Option(point.rule, point.rule, false, point.rule === item.rule)),
  );
  byId("rule-field").hidden = points.length === 0;
  byId("card-link").href = `/v1/models/${encodeURIComponent(item.name)}/card`;
  byId("card-link").hidden = !item.card;
  choosePoint();
}

function chosenPoint() {
  return rules(model()).find((point) => point.rule === byId("rule").value);
}

function measured(name, [value, low, high]) {
  if (value === null) return `${name} undefined`;
  const range = low === null ? "" : ` (${percent(low)} to ${percent(high)})`;
  return `${name} ${percent(value)}${range}`;
}

function choosePoint() {
  const point = chosenPoint();
  byId("point").hidden = !point;
  if (point) {
    const scores = point.sensitivity
      ? `${measured("sensitivity", point.sensitivity)}, ${measured("specificity", point.specificity)}, measured on ` +
        `${point.studies} studies of ${point.split}; ranges are 95 % intervals.`
      : "sensitivity and specificity are not stored in this export; export the run again to see them.";
    byId("point").textContent = `Threshold ${point.threshold.toPrecision(3)}: ${scores}`;
  }
  if (state.answer) showStudy();
}

function take(files) {
  const list = [...files];
  if (!list.length) return;
  if (list.length > state.limits.files) {
    say(`${list.length} files are too many for one study; choose at most ${state.limits.files}.`);
    return;
  }
  const size = list.reduce((sum, file) => sum + file.size, 0);
  if (size > state.limits.body_bytes) {
    say(`The files have ${(size / 2 ** 20).toFixed(0)} MB together; the server takes at most ` +
      `${Math.floor(state.limits.body_bytes / 2 ** 20)} MB.`);
    return;
  }
  state.files = list;
  send();
}

function send() {
  say("");
  clear();
  const form = new FormData();
  form.append("model", model().name);
  form.append("maps", "1");
  form.append("pictures", "1");
  state.files.forEach((file, place) => {
    // the name of the file stays here; its ending helps to recognise DICOM files without a preamble
    const ending = /\.(dcm|dicom)$/i.exec(file.name);
    form.append("files", file, `image${place}${ending ? ending[0].toLowerCase() : ""}`);
  });
  const request = new XMLHttpRequest(); // fetch does not report the progress of an upload
  state.request = request;
  request.open("POST", "/v1/studies");
  for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
  request.responseType = "json";
  request.upload.onprogress = (event) => {
    if (event.lengthComputable) wait(`Sending ${state.files.length} files`, (100 * event.loaded) / event.total);
  };
  request.upload.onload = () => wait("Predicting");
  request.onload = () => received(request);
  request.onerror = () => fail("The server does not answer. Check that it is running, then try again.");
  request.onabort = () => fail("");
  wait(`Sending ${state.files.length} files`);
  request.send(form);
}

function wait(text, share) {
  byId("progress").hidden = false;
  byId("progress-text").textContent = text;
  if (share === undefined) byId("bar").removeAttribute("value");
  else byId("bar").value = share;
}

function fail(text) {
  byId("progress").hidden = true;
  byId("drop").hidden = false;
  say(text);
}

function received(request) {
  byId("progress").hidden = true;
  const content = request.response || {};
  if (request.status !== 200) {
    const again = request.getResponseHeader("retry-after");
    fail(`${content.error || `The server answered with status ${request.status}`}.` +
      (again ? ` Try again in ${again} seconds.` : ""));
    return;
  }
  state.answer = content;
  byId("cards").replaceChildren(...content.images.map(card));
  showStudy();
  setOpacity(byId("opacity").value);
  byId("result").hidden = false;
  byId("drop").hidden = true;
  byId("result").focus();
}

function clear() {
  state.answer = null;
  byId("result").hidden = true;
  byId("cards").replaceChildren();
}

function decided(prediction) {
  // another operating point changes the decision, not the probability
  const point = chosenPoint();
  if (prediction.probability === undefined || !point) return { text: prediction.decision, sign: "" };
  const positive = prediction.decision === model().classes[1];
  const same = point.rule === state.answer.study.rule;
  const yes = same ? positive : prediction.probability >= point.threshold;
  return { text: model().classes[yes ? 1 : 0], sign: yes ? "positive" : "negative" };
}

function showStudy() {
  const { study, images } = state.answer;
  const { text, sign } = decided(study);
  byId("decision").textContent = `Study: ${text}`;
  byId("decision").className = sign;
  const binary = study.probability !== undefined;
  byId("scale").hidden = byId("numbers").hidden = !binary;
  byId("classes").hidden = binary;
  if (binary) {
    const threshold = chosenPoint() ? chosenPoint().threshold : study.threshold;
    byId("numbers").textContent =
      `Probability of ${model().classes[1]}: ${percent(study.probability)}; threshold ${percent(threshold)}`;
    byId("scale-fill").style.width = `${100 * study.probability}%`;
    byId("scale-threshold").style.left = `calc(${100 * threshold}% - 1px)`;
  } else {
    const sorted = Object.entries(study.probabilities).sort((a, b) => b[1] - a[1]);
    byId("classes").tBodies[0].replaceChildren(...sorted.map(([name, value]) => {
      const row = document.createElement("tr");
      for (const cell of [name, percent(value)]) row.insertCell().textContent = cell;
      return row;
    }));
  }
  const failed = study.failed ? `; ${study.failed} could not be read and were left out` : "";
  byId("details").textContent =
    `From ${study.images} of ${images.length} images${failed}. Calibration: ${study.calibration}. ` +
    `Model ${state.answer.model}, version ${state.answer.version}.`;
  images.forEach((image, place) => showVerdict(byId("cards").children[place], image));
}

function showVerdict(element, image) {
  if (!element || image.error) return;
  const { text, sign } = decided(image);
  const verdict = element.querySelector(".verdict");
  verdict.className = `verdict ${sign}`;
  verdict.textContent = image.probability === undefined ? text : `${text}, ${percent(image.probability)}`;
}

function card(image) {
  const element = byId("card-template").content.firstElementChild.cloneNode(true);
  const name = state.files[image.index].name;
  element.querySelector("h3").textContent = name;
  if (image.error) {
    element.querySelector(".verdict").textContent = `Not used: ${image.error}.`;
    element.querySelector(".verdict").classList.add("positive");
    for (const part of [".picture", ".where", ".own", ".remarks"]) element.querySelector(part).hidden = true;
    return element;
  }
  const [base, heat] = element.querySelectorAll("img");
  element.querySelector(".picture").style.aspectRatio = `${image.width} / ${image.height}`;
  base.src = `data:image/png;base64,${image.picture}`;
  base.alt = `Image ${image.index + 1} as the model reads it`;
  heat.src = `data:image/png;base64,${image.map}`;
  element.querySelector(".where").textContent = where(image.box);
  if (image.box) {
    const [left, top, right, bottom] = image.box;
    const box = element.querySelector(".box");
    Object.assign(box.style, {
      left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
    });
    box.hidden = false;
  }
  const slider = element.querySelector("input");
  slider.setAttribute("aria-label", `Map over ${name}, percent`);
  slider.addEventListener("input", () => setCardOpacity(element, slider.value));
  element.querySelector(".remarks").textContent =
    image.remarks.length ? `Check this picture: ${image.remarks.join("; ")}.` : "";
  return element;
}

function where(box) {
  if (!box) return "The map is empty: no region stood out.";
  if ((box[2] - box[0]) * (box[3] - box[1]) > 0.8) return "The map covers nearly the whole picture: no region stood out.";
  const third = (value, names) => names[Math.min(2, Math.floor(3 * value))];
  const down = third((box[1] + box[3]) / 2, ["upper", "middle", "lower"]);
  const across = third((box[0] + box[2]) / 2, ["left", "centre", "right"]);
  return `The model looked most at the ${down} ${across} of the picture (frame).`;
}

function setOpacity(value) {
  byId("opacity-value").textContent = value;
  for (const element of byId("cards").children) {
    const slider = element.querySelector("input");
    slider.value = value;
    setCardOpacity(element, value);
  }
}

function setCardOpacity(element, value) {
  element.querySelector(".heat").style.opacity = value / 100;
  element.querySelector(".box").style.opacity = value > 0 ? 1 : 0;
}

async function showCard(event) {
  event.preventDefault();
  const response = await fetch(byId("card-link").href, { headers: headers() });
  if (!response.ok) {
    say(`The model card cannot be shown (status ${response.status}).`);
    return;
  }
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  byId("card-text").replaceChildren(...page.querySelector("main").childNodes);
  byId("card-dialog").showModal();
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = byId("token").value.trim();
  byId("token").value = "";
  start();
});
byId("model").addEventListener("change", () => { clear(); byId("drop").hidden = false; chooseModel(); });
byId("rule").addEventListener("change", choosePoint);
byId("files").addEventListener("change", () => { take(byId("files").files); byId("files").value = ""; });
byId("opacity").addEventListener("input", () => setOpacity(byId("opacity").value));
byId("cancel").addEventListener("click", () => state.request && state.request.abort());
byId("again").addEventListener("click", () => { clear(); byId("drop").hidden = false; byId("files").focus(); });
byId("card-link").addEventListener("click", showCard);
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); byId("zone").classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); byId("zone").classList.remove("over"); });
}
document.addEventListener("drop", (event) => { if (!byId("drop").hidden) take(event.dataTransfer.files); });
start();
