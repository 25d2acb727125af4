"use strict";
// The page is readable without this: it adds the legend's switches, figures under the pointer, sorting and the boxes.

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, name = "", text = "") => {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
};

// Legend: a checkbox shows or hides a method in every chart; pointing at it pales the others.
const boxes = all("[data-toggle]");
const curvesOf = (box) => all(`[data-curve="${box.dataset.toggle}"]`);
const apply = (box) => curvesOf(box).forEach((curve) => curve.classList.toggle("off", !box.checked));
for (const box of boxes) {
  apply(box);
  box.addEventListener("change", () => apply(box));
  const light = (on) => () => {
    all(".charts").forEach((charts) => charts.classList.toggle("lit", on && box.checked));
    curvesOf(box).forEach((curve) => curve.classList.toggle("lit", on));
  };
  box.parentElement.addEventListener("pointerenter", light(true));
  box.parentElement.addEventListener("pointerleave", light(false));
  box.addEventListener("focus", () => box.matches(":focus-visible") && light(true)());
  box.addEventListener("blur", light(false));
}
for (const button of all("[data-all]"))
  button.addEventListener("click", () => {
    for (const box of boxes) {
      box.checked = button.dataset.all === "on";
      apply(box);
    }
  });

// Charts: the figures of the point nearest to the pointer.
for (const plot of all(".plot")) {
  const tip = plot.querySelector(".tip");
  const hide = () => (tip.hidden = true);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("pointermove", (event) => {
    const area = plot.getBoundingClientRect();
    const [x, y] = [event.clientX - area.left, event.clientY - area.top];
    let [nearest, least] = [null, 40];
    for (const point of all(".curve:not(.off) use", plot)) {
      const away = Math.hypot((point.dataset.x / 100) * area.width - x, (point.dataset.y / 100) * area.height - y);
      if (away < least) [nearest, least] = [point, away];
    }
    if (!nearest) return hide();
    tip.textContent = nearest.dataset.tip;
    tip.hidden = false;
    const left = (nearest.dataset.x / 100) * area.width;
    const top = (nearest.dataset.y / 100) * area.height;
    tip.style.left = `${Math.max(-30, Math.min(left - tip.offsetWidth / 2, area.width - tip.offsetWidth + 10))}px`;
    tip.style.top = `${top > tip.offsetHeight + 14 ? top - tip.offsetHeight - 12 : top + 14}px`;
  });
}

// Tables: a heading sorts by its column, then the other way round; cells without a figure stay last.
for (const table of all(".sortable")) {
  const heads = all("thead th", table);
  heads.forEach((head, column) =>
    head.querySelector("button")?.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const body = table.querySelector("tbody:last-child");
      const rows = [...body.rows].sort((a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        const order = isNaN(left) || isNaN(right) ? left.localeCompare(right, "en") : left - right;
        return down ? -order : order;
      });
      body.append(...rows);
    }),
  );
}

// Boxes over t: every image once with its ground truth, the float network's boxes, and a method's at the slider's t.
const data = document.getElementById("boxes-data");
if (data) showBoxes(JSON.parse(data.textContent));

function showBoxes({ images, figures, colours, t }) {
  const [method, time, play, output] = ["method", "time", "play", "figures"].map((id) => document.getElementById(id));
  const keeps = all("[data-keeps]");
  const stops = document.querySelector(".stops");
  const pictures = document.getElementById("pictures");
  const numbers = new Map(Object.entries(colours));
  const colour = (name) => {
    if (!numbers.has(name)) numbers.set(name, numbers.size);
    return `b${numbers.get(name) % 8}`;
  };

  const draw = (picture, image, found) => {
    all(".box, .caption", picture).forEach((old) => old.remove());
    const names = [];
    for (const [x1, y1, x2, y2, name, mark] of [...found].reverse()) {
      const text = typeof mark === "number" ? `${name} ${mark.toFixed(2)}` : name;
      const box = make("div", `box ${colour(name)}`);
      box.classList.toggle("ignored", mark === true);
      box.title = text;
      box.style.left = `${(100 * x1) / image.width}%`;
      box.style.top = `${(100 * y1) / image.height}%`;
      box.style.width = `${(100 * (x2 - x1)) / image.width}%`;
      box.style.height = `${(100 * (y2 - y1)) / image.height}%`;
      picture.append(box);
      names.unshift([box, make("div", `caption ${colour(name)}`, text)]);
    }
    // a caption takes the first place around its box that is free, the best box's first; where there is none it is left out
    picture.append(...names.map(([, caption]) => caption));
    const taken = [];
    for (const [box, caption] of names) {
      const [width, height] = [caption.offsetWidth, caption.offsetHeight];
      const left = Math.max(0, Math.min(box.offsetLeft, picture.clientWidth - width));
      const [upper, lower] = [box.offsetTop, box.offsetTop + box.offsetHeight];
      const top = [upper - height, upper, lower - height, lower].find(
        (y) =>
          y >= 0 &&
          y + height <= picture.clientHeight &&
          taken.every(([a, b, c, d]) => left >= c || left + width <= a || y >= d || y + height <= b),
      );
      if (top === undefined) {
        caption.remove();
        continue;
      }
      taken.push([left, top, left + width, top + height]);
      caption.style.left = `${(100 * left) / picture.clientWidth}%`;
      caption.style.top = `${(100 * top) / picture.clientHeight}%`;
    }
  };
  const panel = (image, number, name) => {
    const figure = make("figure", name);
    const picture = make("div", "picture");
    picture.style.aspectRatio = `${image.width} / ${image.height}`;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
    // the image's data stand in the page once; the other panels refer to them
    const content = document.createElementNS("http://www.w3.org/2000/svg", name === "truth" ? "image" : "use");
    content.setAttribute("href", name === "truth" ? image.photo : `#photo-${number}`);
    if (name === "truth") {
      content.id = `photo-${number}`;
      content.setAttribute("width", image.width);
      content.setAttribute("height", image.height);
      content.setAttribute("preserveAspectRatio", "none");
    }
    svg.append(content);
    picture.append(svg);
    const caption = make("figcaption");
    caption.append(make("b"), make("span"));
    figure.append(picture, caption);
    return figure;
  };
  const show = (figure, image, heading, found) => {
    draw(figure.querySelector(".picture"), image, found);
    const count = `${found.length} ${found.length === 1 ? "box" : "boxes"}`;
    const classes = found.map((box) => box[4]).join(", ");
    const picture = figure.querySelector(".picture");
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", `Image ${image.id}, ${heading}: ${count}${classes && ": "}${classes}`);
    figure.querySelector("figcaption b").textContent = heading;
    figure.querySelector("figcaption span").textContent = count;
  };

  images.forEach((image, number) => {
    const row = make("div", "row");
    row.append(...["truth", "float-boxes", "spiking-boxes"].map((name) => panel(image, number, name)));
    pictures.append(row);
  });
  const showStill = () => {
    all(".truth").forEach((figure, i) => show(figure, images[i], "ground truth", images[i].truth));
    all(".float-boxes").forEach((figure, i) => show(figure, images[i], "float network", images[i].float));
  };

  const times = () => Object.keys(figures[method.value]);
  const update = () => {
    const t = times()[time.value];
    const here = (button) => button.dataset.keeps === method.value && button.dataset.t === t;
    keeps.forEach((button) => button.setAttribute("aria-pressed", here(button)));
    const heading = `${method.value}, t = ${t}`;
    time.setAttribute("aria-valuetext", `t = ${t}`);
    output.textContent = `t = ${t}: ${figures[method.value][t]}`;
    all("i", stops).forEach((stop, i) => stop.classList.toggle("here", i === Number(time.value)));
    all(".spiking-boxes").forEach((figure, i) => show(figure, images[i], heading, images[i].methods[method.value]?.[t] ?? []));
  };
  const choose = () => {
    const before = time.dataset.t ?? Infinity;
    const known = times();
    time.max = known.length - 1;
    time.disabled = known.length < 2;
    play.disabled = known.length < 2;
    stops.replaceChildren(...known.map((t) => make("i", "", t)));
    const last = known.filter((t) => Number(t) <= before).length - 1;
    time.value = Math.max(0, last);
    update();
  };
  method.addEventListener("change", choose);
  time.addEventListener("input", () => {
    time.dataset.t = times()[time.value];
    update();
  });
  for (const button of keeps)
    button.addEventListener("click", () => {
      stop();
      [method.value, time.dataset.t] = [button.dataset.keeps, button.dataset.t];
      choose();
    });

  let playing = null;
  const stop = () => {
    clearInterval(playing);
    playing = null;
    play.setAttribute("aria-pressed", "false");
    play.textContent = "Play";
  };
  play.addEventListener("click", () => {
    if (playing) return stop();
    const go = (position) => {
      time.value = position;
      time.dispatchEvent(new Event("input"));
    };
    const step = () => {
      go(Number(time.value) + 1);
      if (time.value === time.max) stop();
    };
    if (time.value === time.max) go(0);
    play.setAttribute("aria-pressed", "true");
    play.textContent = "Stop";
    playing = setInterval(step, 800);
  });
  for (const control of [method, time]) control.addEventListener("pointerdown", stop);
  showStill();
  time.dataset.t = t;
  choose();
  // captions keep their size when the pictures change theirs
  new ResizeObserver(() => {
    showStill();
    update();
  }).observe(pictures);
}
