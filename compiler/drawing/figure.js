// Figures on a page: tooltips, highlighting of a node's edges, zoom and pan. No library, no request.
"use strict";
(() => {
  const tip = document.body.appendChild(document.createElement("div"));
  tip.className = "gs-tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;

  const showTip = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 4))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 18}px`;
  };
  const hideTip = () => { tip.hidden = true; };
  window.gsTip = { show: showTip, hide: hideTip };

  // The titles serve SVG viewers; here they would show a second tooltip.
  const setUpTips = (root) => {
    for (const title of root.querySelectorAll("title")) {
      title.parentNode.dataset.tip = title.textContent;
      title.remove();
    }
    root.addEventListener("pointermove", (event) => {
      const item = event.target.closest("[data-tip]");
      if (item) showTip(item.dataset.tip, event.clientX, event.clientY); else hideTip();
    });
    root.addEventListener("pointerleave", hideTip);
  };

  const light = (svg, item) => {
    for (const lit of svg.querySelectorAll(".gs-lit, .gs-chosen")) lit.classList.remove("gs-lit", "gs-chosen");
    svg.classList.toggle("gs-focus", Boolean(item));
    if (!item) return;
    const ids = new Set();
    const edges = [...svg.querySelectorAll(".gs-edge[data-src]")].filter((edge) => edge === item ||
      edge.dataset.src === item.dataset.id || edge.dataset.dst === item.dataset.id);
    for (const edge of edges) {
      edge.classList.add("gs-lit");
      ids.add(edge.dataset.src).add(edge.dataset.dst);
    }
    for (const node of svg.querySelectorAll(".gs-node")) {
      if (node === item || ids.has(node.dataset.id)) node.classList.add("gs-lit");
    }
    if (item.dataset.id) item.classList.add("gs-chosen");
  };

  const setUpFigure = (view) => {
    const svg = view.querySelector("svg");
    const whole = svg.viewBox.baseVal;
    const home = [whole.x, whole.y, whole.width, whole.height];
    let box = [...home];
    const apply = () => {
      svg.setAttribute("viewBox", box.join(" "));
      svg.classList.toggle("gs-zoomed", box[2] < home[2] - 0.5);
    };
    const zoom = (factor, cx = box[0] + box[2] / 2, cy = box[1] + box[3] / 2) => {
      const width = Math.min(home[2], Math.max(home[2] / 12, box[2] * factor));
      const scale = width / box[2];
      box = [cx - (cx - box[0]) * scale, cy - (cy - box[1]) * scale, width, box[3] * scale];
      if (width === home[2]) box = [...home];
      apply();
    };
    const pan = (dx, dy) => {
      box[0] = Math.min(home[2] - box[2], Math.max(0, box[0] + dx));
      box[1] = Math.min(home[3] - box[3], Math.max(0, box[1] + dy));
      apply();
    };
    const nodes = [...svg.querySelectorAll(".gs-node")];
    let chosen = -1;
    const choose = (index) => {
      chosen = index;
      light(svg, nodes[index]);
      if (index < 0) { hideTip(); return; }
      const at = nodes[index].getBoundingClientRect();
      showTip(nodes[index].dataset.tip, at.left, at.bottom - 12);
    };
    const keys = {
      "+": () => zoom(0.8), "=": () => zoom(0.8), "-": () => zoom(1.25),
      "0": () => { box = [...home]; apply(); },
      ArrowLeft: () => pan(-box[2] / 10, 0), ArrowRight: () => pan(box[2] / 10, 0),
      ArrowUp: () => pan(0, -box[3] / 10), ArrowDown: () => pan(0, box[3] / 10),
      n: () => choose((chosen + 1) % nodes.length), p: () => choose((chosen + nodes.length - 1) % nodes.length),
      Escape: () => choose(-1),
    };
    view.addEventListener("keydown", (event) => {
      const zoomed = box[2] < home[2] - 0.5;
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      if (event.key.startsWith("Arrow") && !zoomed) return;  // the page scrolls
      keys[event.key]();
      event.preventDefault();
    });
    view.addEventListener("blur", () => choose(-1));
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== view) return;  // the page scrolls until the figure is chosen
      event.preventDefault();
      const at = svg.getBoundingClientRect();
      zoom(event.deltaY < 0 ? 0.85 : 1 / 0.85, box[0] + (event.clientX - at.left) / at.width * box[2],
        box[1] + (event.clientY - at.top) / at.height * box[3]);
    }, { passive: false });
    svg.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) {
        const scale = box[2] / svg.getBoundingClientRect().width;
        pan(-event.movementX * scale, -event.movementY * scale);
      } else {
        light(svg, event.target.closest(".gs-node, .gs-edge[data-src]"));
      }
    });
    svg.addEventListener("pointerleave", () => light(svg, null));
    setUpTips(view);
  };

  for (const view of document.querySelectorAll(".gs-view")) setUpFigure(view);
  for (const root of document.querySelectorAll(".gs-tips")) setUpTips(root);
})();
