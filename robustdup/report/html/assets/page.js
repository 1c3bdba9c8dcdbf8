// One script for every page: theme, sortable and searchable tables, hints on charts, the gallery. Text from records is only
// ever set as text.
(function () {
  "use strict";
  const root = document.documentElement;

  function remembered(value) {
    try {
      if (value !== undefined) localStorage.setItem("robustdup-theme", value);
      return localStorage.getItem("robustdup-theme");
    } catch (error) {
      return null; // pages from a disk may not remember anything
    }
  }

  const chosen = remembered();
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function theme() {
    const button = document.getElementById("theme");
    const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
    const name = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", "Switch to " + button.textContent.toLowerCase() + " colours"); };
    button.hidden = false;
    name();
    button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; remembered(root.dataset.theme); name(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  }

  function key(cell) {
    const text = cell.dataset.sort !== undefined ? cell.dataset.sort : cell.textContent.trim();
    const number = Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text.toLowerCase();
  }

  function before(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1;
    if (typeof b === "number") return 1;
    return a < b ? -1 : a > b ? 1 : 0;
  }

  function place(row, column) { // the cell under a heading, where cells may span several columns
    let at = 0;
    for (const cell of row.cells) { at += cell.colSpan; if (at > column) return cell; }
    return row.cells[row.cells.length - 1];
  }

  function sortable(button) {
    button.addEventListener("click", () => {
      const heading = button.closest("th"), table = heading.closest("table"), body = table.tBodies[0];
      const column = heading.cellIndex;
      const now = heading.getAttribute("aria-sort");
      const down = now ? now === "ascending" : heading.classList.contains("n");
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = Array.from(body.rows, (row) => [key(place(row, column)), row]);
      rows.sort((a, b) => {
        const oneText = (typeof a[0] !== "number") !== (typeof b[0] !== "number");
        return oneText || !down ? before(a[0], b[0]) : before(b[0], a[0]); // what has no number stays last
      });
      body.append(...rows.map((pair) => pair[1]));
    });
  }

  function searchable(name) { // every search field and choice that filters the rows of a table, or the cards of a list
    const inputs = Array.from(document.querySelectorAll('[data-filters="' + name + '"]'));
    const found = document.getElementById(name), rows = Array.from(found.tBodies ? found.tBodies[0].rows : found.children);
    const status = document.querySelector('[data-counts="' + name + '"]');
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const apply = () => {
      const words = inputs.flatMap((input) => (input.matches("select") ? [input.value] : input.value.toLowerCase().split(/\s+/))).filter(Boolean);
      let shown = 0;
      rows.forEach((row, i) => { row.hidden = !words.every((word) => texts[i].includes(word)); shown += !row.hidden; });
      status.textContent = words.length ? shown + " of " + rows.length : "";
    };
    for (const input of inputs) input.addEventListener("input", apply);
  }

  const HINTED = ".plot > svg, .fate[role=group], table", REACH = 26; // pixels from a point at which the pointer still means it
  const focusable = (hinted) => hinted.closest("a") || hinted;

  // Hints on whatever has data-tip: for the pointer, which need not be exact in a chart, and for the keyboard. Each chart and
  // each table is one stop of the tab key; arrows, Home and End lead through what has a hint in it.
  function hints() {
    const tip = document.getElementById("tip");
    let near = [];

    function hide() { tip.hidden = true; }

    function show(target) {
      tip.hidden = !target;
      if (!target) return;
      tip.textContent = target.dataset.tip;
      const box = target.getBoundingClientRect(), own = tip.getBoundingClientRect();
      const x = Math.min(Math.max(8, box.left + box.width / 2 - own.width / 2), innerWidth - own.width - 8);
      const y = (target.classList.contains("hit") ? Math.max(box.top, 56) : box.top) - own.height - 8;
      tip.style.left = x + "px";
      tip.style.top = (y < 8 ? Math.min(box.bottom, innerHeight - own.height - 16) + 8 : y) + "px";
    }

    function middles(area) {
      return Array.from(area.querySelectorAll(".dot[data-tip]")).filter((mark) => mark.checkVisibility()).map((mark) => {
        const box = mark.getBoundingClientRect();
        return [box.left + box.width / 2 + scrollX, box.top + box.height / 2 + scrollY, mark];
      });
    }

    function closest(event, found) {
      let best = null, least = REACH;
      for (const [x, y, mark] of found) {
        const away = Math.hypot(event.pageX - x, event.pageY - y);
        if (away < least) { best = mark; least = away; }
      }
      return best;
    }

    for (const area of document.querySelectorAll(".plot")) {
      area.addEventListener("pointerenter", () => { near = middles(area); });
      area.addEventListener("pointermove", (event) => show(closest(event, near) || event.target.closest("[data-tip]")));
      area.addEventListener("pointerleave", hide);
    }
    document.addEventListener("pointerover", (event) => {
      if (event.target.closest && !event.target.closest(".plot")) show(event.target.closest("[data-tip]"));
    });
    document.addEventListener("focusin", (event) => {
      const target = event.target.closest("[data-tip]") || (event.target.matches("a") && event.target.querySelector("[data-tip]"));
      if (target && event.target.matches(":focus-visible")) show(target);
    });
    document.addEventListener("focusout", hide);
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
    addEventListener("scroll", hide, { passive: true });
    document.querySelectorAll(HINTED).forEach(reachable);
  }

  function reachable(area) {
    const all = () => Array.from(area.querySelectorAll("[data-tip]"), focusable).filter((one) => one.checkVisibility());
    for (const hinted of area.querySelectorAll("[data-tip]")) {
      const target = focusable(hinted);
      target.setAttribute("tabindex", "-1");
      if (!target.matches("a, td")) target.setAttribute("role", "img");
      target.setAttribute(target.matches("td") ? "aria-description" : "aria-label", hinted.dataset.tip);
    }
    const stop = (target) => {
      for (const old of area.querySelectorAll('[tabindex="0"]')) old.setAttribute("tabindex", "-1");
      target.setAttribute("tabindex", "0");
    };
    const first = area.querySelector("[data-tip]");
    if (!first) return;
    stop(focusable(first));
    const ears = area.closest(".plot") || area; // an SVG that listens for focus would be a stop of the tab key itself
    ears.addEventListener("focusin", (event) => { if (area.contains(event.target) && event.target.matches("[tabindex]")) stop(event.target); });
    ears.addEventListener("keydown", (event) => {
      const targets = all(), at = targets.indexOf(document.activeElement);
      if (at < 0) return;
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: beyond(targets, at, 1) - at, ArrowUp: beyond(targets, at, -1) - at,
        Home: -at, End: targets.length - 1 - at }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      targets[Math.min(Math.max(at + step, 0), targets.length - 1)].focus({ preventScroll: false });
    });
  }

  function beyond(targets, at, way) { // the nearest target above (-1) or below (1); itself where there is none
    const middle = (one) => { const box = one.getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2]; };
    const [x, y] = middle(targets[at]);
    let best = at, least = Infinity;
    targets.forEach((one, i) => {
      const [left, top] = middle(one), down = way * (top - y), away = down + 3 * Math.abs(left - x);
      if (down > 2 && away < least) { best = i; least = away; }
    });
    return best;
  }

  function contents() {
    const links = new Map(Array.from(document.querySelectorAll(".contents a"), (link) => [link.hash.slice(1), link]));
    const seen = new Set();
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id);
      let first = true;
      for (const [name, link] of links) { link.classList.toggle("here", first && seen.has(name)); if (seen.has(name)) first = false; }
    }, { rootMargin: "-140px 0px -40% 0px" });
    for (const section of document.querySelectorAll("main section")) watcher.observe(section);
  }

  function gallery(source) {
    const data = JSON.parse(source.textContent), perPage = innerWidth < 600 ? 12 : 24;
    const cards = document.getElementById("gallery-cards"), tools = document.getElementById("gallery-tools");
    const pager = document.getElementById("gallery-pager"), selects = Array.from(tools.querySelectorAll("select"));
    const name = (label) => (data.classes[label] !== undefined ? data.classes[label] : String(label));
    const tones = { stands: "stands", broken: "broken", undecided: "undecided", "wrong already": "wrong" };
    let shown = data.samples.map((_, i) => i), page = 0;

    for (const select of selects) {
      const by = select.dataset.by, counts = new Map();
      for (const sample of data.samples) if (sample[by] !== "") counts.set(sample[by], (counts.get(sample[by]) || 0) + 1);
      const keys = Array.from(counts.keys()).sort(before);
      for (const value of keys) {
        const text = by === "outcome" ? data.names[value] : by === "attack" ? value : name(value);
        const option = element("option", "", text + " (" + counts.get(value) + ")");
        option.value = String(value);
        select.append(option);
      }
      select.addEventListener("change", () => { page = 0; choose(); });
    }

    function choose() {
      const wanted = selects.filter((select) => select.value !== "");
      shown = data.samples.map((_, i) => i).filter((i) => wanted.every((s) => String(data.samples[i][s.dataset.by]) === s.value));
      draw();
    }

    function tile(i, column, alt) {
      const rows = Math.min(data.perSheet, data.samples.length - Math.floor(i / data.perSheet) * data.perSheet);
      const row = i % data.perSheet, columns = data.columns.length, made = element("span", "tile" + (data.pixelated ? " pixelated" : ""));
      made.setAttribute("role", "img");
      made.setAttribute("aria-label", alt);
      made.style.aspectRatio = String(data.ratio);
      made.style.backgroundImage = 'url("' + data.sheets[Math.floor(i / data.perSheet)] + '")';
      made.style.backgroundSize = columns * 100 + "% " + rows * 100 + "%";
      made.style.backgroundPosition = (columns > 1 ? (100 * column) / (columns - 1) : 0) + "% " + (rows > 1 ? (100 * row) / (rows - 1) : 0) + "%";
      return made;
    }

    function card(i) {
      const sample = data.samples[i], made = element("figure", "card"), tiles = element("div", "tiles"), text = element("figcaption");
      data.columns.forEach((column, at) => {
        const what = column === "clean" ? "taken for " + name(sample.before) : column === "adversarial" ? "taken for " + name(sample.after) : "magnified";
        tiles.append(tile(i, at, "Image " + sample.index + ", " + column + ", " + what));
      });
      text.append(element("span", "dot " + tones[sample.outcome]));
      text.append(element("span", "to", name(sample.label)));
      const before = sample.before === sample.label ? "" : ", taken for " + name(sample.before);
      if (sample.outcome === "broken") text.append(" taken for ", element("span", "to", name(sample.after)));
      else if (sample.outcome === "wrong already") text.append(before);
      text.append(element("br"));
      const what = sample.outcome === "broken" ? sample.attack + (sample.distance === null ? "" : ", distance " + Number(sample.distance.toPrecision(4))) : data.names[sample.outcome];
      text.append(element("span", "muted", "#" + sample.index + " · " + what));
      made.append(tiles, text);
      return made;
    }

    function draw() {
      const pages = Math.max(1, Math.ceil(shown.length / perPage));
      page = Math.min(page, pages - 1);
      cards.replaceChildren(...shown.slice(page * perPage, (page + 1) * perPage).map(card));
      if (!shown.length) cards.append(element("p", "muted", "No sample fits these filters."));
      document.getElementById("gallery-count").textContent = shown.length + " of " + data.samples.length + " shown";
      document.getElementById("gallery-page").textContent = "Page " + (page + 1) + " of " + pages;
      pager.hidden = pages < 2;
      for (const button of pager.querySelectorAll("button")) button.disabled = button.dataset.step < 0 ? page === 0 : page === pages - 1;
    }

    for (const button of pager.querySelectorAll("button")) button.addEventListener("click", () => { page += Number(button.dataset.step); draw(); });
    tools.hidden = false;
    draw();
  }

  function copies(button) {
    if (!navigator.clipboard) return;
    button.hidden = false;
    button.addEventListener("click", () => {
      navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent).then(
        () => { button.textContent = "Copied"; }, () => { button.textContent = "Not allowed"; });
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    theme();
    hints();
    contents();
    document.querySelectorAll(".sort").forEach(sortable);
    new Set(Array.from(document.querySelectorAll("[data-filters]"), (input) => input.dataset.filters)).forEach(searchable);
    document.querySelectorAll("[data-copies]").forEach(copies);
    const own = document.querySelector(".own-row"), box = own && own.closest(".scroll");
    if (box) { // the own row in the middle, and no row cut in half at the top
      const rows = Array.from(own.parentElement.rows), above = Math.floor(box.clientHeight / 2 / own.offsetHeight);
      box.scrollTop = rows[Math.max(0, rows.indexOf(own) - above)].offsetTop - own.closest("table").tHead.offsetHeight;
    }
    const source = document.getElementById("gallery-data");
    if (source) gallery(source);
    root.dataset.ready = "yes";
  });
})();
