// The report's own behaviour: values on charts, the epoch slider, everything open when printed.
"use strict";
(() => {
  const { show, hide } = window.gsTip;

  // -- charts: a cursor that follows the pointer or the arrow keys
  const setUpChart = (svg) => {
    const { x: xName, series } = JSON.parse(svg.dataset.chart);
    const cursor = svg.querySelector(".ch-cursor");
    const stops = [...new Map(series.flatMap((line) => line.points.map(([px, x]) => [x, px])))].sort((a, b) => a[0] - b[0]);
    let index = stops.length;
    const put = (wanted) => {
      index = Math.max(0, Math.min(stops.length - 1, wanted));
      const [x, px] = stops[index];
      cursor.setAttribute("x1", px);
      cursor.setAttribute("x2", px);
      cursor.setAttribute("visibility", "visible");
      const lines = series.flatMap((line) => line.points.filter((p) => p[1] === x).map((p) => `${line.name} ${p[3]}`));
      const box = svg.getBoundingClientRect();
      show(`${xName} ${x}\n${lines.join("\n")}`, box.left + px / svg.viewBox.baseVal.width * box.width, box.top + box.height / 3);
    };
    const leave = () => { cursor.setAttribute("visibility", "hidden"); hide(); };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const px = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      const far = stops.map(([, at]) => Math.abs(at - px));
      put(far.indexOf(Math.min(...far)));
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      put(index + step);
      event.preventDefault();
    });
  };
  document.querySelectorAll(".chart").forEach(setUpChart);

  // -- gates
  const setUpGates = (source) => {
    const { gates, epochs, largest, values: packed } = JSON.parse(source.textContent);
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const shares = new Int16Array(bytes.buffer);
    const slider = document.getElementById("epoch"), shown = document.getElementById("epoch-shown");
    const now = document.getElementById("strip-now"), canvas = document.getElementById("strip");
    const cells = [...document.querySelectorAll(".hm-cell")];
    const opacity = (share) => (share === 0 ? 0 : 0.15 + 0.85 * Math.abs(share) / 32767);
    const tell = (share, gate) => `${gates[gate]} = ${share === 0 ? "0" : (share / 32767 * largest).toPrecision(4).replace(/\.?0+$/, "")}`;

    const paint = (index) => {
      shown.textContent = epochs[index];
      for (const cell of cells) {
        const share = shares[index * gates.length + Number(cell.dataset.gate)];
        cell.style.fillOpacity = opacity(share).toFixed(3);
        cell.dataset.tip = tell(share, cell.dataset.gate);
      }
      now.style.left = `${100 * index / epochs.length}%`;
      now.style.width = `${100 / epochs.length}%`;
    };
    slider.addEventListener("input", () => paint(Number(slider.value)));

    const drawStrip = () => {
      canvas.width = epochs.length;
      canvas.height = gates.length;
      const context = canvas.getContext("2d");
      const picture = context.createImageData(epochs.length, gates.length);
      const probe = document.createElement("i");
      probe.style.color = "var(--fill)";
      document.body.append(probe);
      const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g).map(Number);
      probe.remove();
      for (let epoch = 0; epoch < epochs.length; epoch++) {
        for (let gate = 0; gate < gates.length; gate++) {
          const at = 4 * (gate * epochs.length + epoch);
          picture.data.set([red, green, blue, 255 * opacity(shares[epoch * gates.length + gate])], at);
        }
      }
      context.putImageData(picture, 0, 0);
    };
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      const part = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value * count)));
      return [part((event.clientX - box.left) / box.width, epochs.length), part((event.clientY - box.top) / box.height, gates.length)];
    };
    canvas.addEventListener("pointermove", (event) => {
      const [epoch, gate] = place(event);
      show(`epoch ${epochs[epoch]}\n${tell(shares[epoch * gates.length + gate], gate)}`, event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", hide);
    canvas.addEventListener("click", (event) => {
      slider.value = place(event)[0];
      paint(Number(slider.value));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawStrip);
    drawStrip();
    paint(Number(slider.value));
  };
  const source = document.getElementById("gate-values");
  if (source) setUpGates(source);

  // -- matrices by keyboard: the arrow keys walk through the cells
  for (const matrix of document.querySelectorAll(".hm")) {
    const cells = [...matrix.querySelectorAll(".hm-cell")];
    let at = -1;
    const leave = () => { cells[at]?.classList.remove("now"); hide(); };
    matrix.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      leave();
      at = (at + step + cells.length) % cells.length;
      cells[at].classList.add("now");
      const box = cells[at].getBoundingClientRect();
      show(cells[at].dataset.tip, box.left, box.bottom - 10);
      event.preventDefault();
    });
    matrix.addEventListener("blur", leave);
  }

  // -- printing
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("#architecture details:not([open])")];
    for (const item of closed) item.open = true;
  });
  addEventListener("afterprint", () => { for (const item of closed) item.open = false; });
})();
