"use strict";
(() => {
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const data = JSON.parse(document.getElementById("cases").textContent);
  const stored = JSON.parse(document.getElementById("pictures").textContent);
  document.documentElement.classList.add("live");

  // sorting: a click on a head sorts by its column, a second one turns it round; rows without a number stay last
  const value = (row, column) => {
    const cell = row.cells[column];
    if (!cell) return null;
    if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    return cell.textContent.trim().toLowerCase() || null;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  const sortBy = (table, column) => {
    const head = table.tHead.rows[0].cells[column];
    const was = head.getAttribute("aria-sort");
    const first = head.dataset.better === "max" ? -1 : 1;
    const direction = was === null ? first : was === "ascending" ? -1 : 1;
    $$("[aria-sort]", table.tHead).forEach((cell) => cell.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
    rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : direction * compare(a, b)));
    rows.forEach(([, row]) => table.tBodies[0].append(row));
  };
  $$("table.sortable").forEach((table) =>
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.tabIndex = 0;
      head.setAttribute("role", "button");
      head.addEventListener("click", () => sortBy(table, column));
      head.addEventListener("keydown", (event) => event.key === "Enter" && sortBy(table, column));
    }),
  );

  // filtering: words narrow weights, images and datasets; a dataset without a row left is hidden
  const search = document.getElementById("filter");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (text) => words.every((word) => text.includes(word));
    $$("section[data-name]").forEach((section) => {
      const name = section.dataset.name.toLowerCase();
      let left = 0;
      $$("[data-search]", section).forEach((part) => {
        part.hidden = !fits(`${name} ${part.dataset.search.toLowerCase()}`);
        if (!part.hidden) left += 1;
      });
      section.hidden = words.length > 0 && left === 0;
    });
    $$("#overview tbody tr").forEach((row) => {
      const names = words.filter((word) => !$$("section[data-name]").some((s) => s.dataset.name.toLowerCase().includes(word)));
      row.hidden = !names.every((word) => row.dataset.search.toLowerCase().includes(word));
    });
  };
  if (search) search.addEventListener("input", filter);

  // the overview's metric
  const metric = document.getElementById("metric");
  if (metric)
    metric.addEventListener("change", () =>
      $$("#overview td[data-all]").forEach((cell) => {
        const all = JSON.parse(cell.dataset.all);
        const [number, text, interval, shade] = all[metric.value] || ["", "", "", 0];
        cell.dataset.value = number;
        cell.style.setProperty("--shade", shade);
        cell.querySelector(".value").textContent = text;
        cell.querySelector(".interval").textContent = interval;
      }),
    );

  // the viewer: image, truth and prediction of one case side by side
  const viewer = document.getElementById("viewer");
  let row = 0;
  let place = 0;
  const held = new Map($$("img[data-file][src]").map((image) => [image.dataset.file, image.src]));
  $$("img[data-file]:not([src])").forEach((image) => (image.src = held.get(image.dataset.file) || ""));
  const source = (file) => (stored[file] ? `data:image/jpeg;base64,${stored[file]}` : held.get(file) || "");
  const show = () => {
    const { title, metrics, cases } = data[row];
    const one = cases[place];
    viewer.querySelector("h2").textContent = one.image;
    viewer.querySelector(".where").textContent = `${title} · ${place + 1} of ${cases.length}${one.group === one.image ? "" : ` · group ${one.group}`}`;
    const list = viewer.querySelector("dl");
    list.replaceChildren();
    metrics.forEach((name, i) => {
      const term = document.createElement("dt");
      const said = document.createElement("dd");
      term.textContent = name;
      said.textContent = one.scores[i];
      list.append(term, said);
    });
    const shown = viewer.querySelector(".row");
    shown.replaceChildren();
    ["image", "truth", "prediction"].forEach((role) => {
      const file = one.pictures[role];
      if (!file) return;
      const figure = document.createElement("figure");
      const found = source(file);
      if (found) {
        const image = document.createElement("img");
        image.src = found;
        image.alt = `${role} of ${one.image}`;
        figure.append(image);
      } else {
        const box = document.createElement("p");
        box.className = "absent";
        box.textContent = `not in this page: ${file}`;
        figure.append(box);
      }
      const caption = document.createElement("figcaption");
      caption.textContent = role;
      figure.append(caption);
      shown.append(figure);
    });
  };
  const move = (by) => {
    place = (place + by + data[row].cases.length) % data[row].cases.length;
    show();
  };
  const open = (part) => {
    row = Number(part.dataset.row);
    place = data[row].cases.findIndex((one) => one.image === part.dataset.image);
    if (place < 0) return;
    show();
    viewer.showModal();
  };
  $$("[data-row][data-image]").forEach((part) => {
    part.addEventListener("click", () => open(part));
    part.addEventListener("keydown", (event) => event.key === "Enter" && open(part));
  });
  viewer.querySelector(".previous").addEventListener("click", () => move(-1));
  viewer.querySelector(".next").addEventListener("click", () => move(1));
  viewer.querySelector(".close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
})();
