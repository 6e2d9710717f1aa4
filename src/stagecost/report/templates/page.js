// Draws the figures live and lets the sliders move them. Every text was written when the page was made.
"use strict";
(() => {
  const { charts, frames } = JSON.parse(document.getElementById("live").textContent);
  const options = { mode: "vega-lite", ast: true, actions: false, renderer: "svg", defaultStyle: false };
  const views = [];

  async function enliven(box) {
    const spec = charts[box.dataset.chart];
    const live = document.createElement("div");
    live.className = "live";
    live.setAttribute("aria-hidden", "true");
    box.append(live);
    box.classList.add("is-live");
    try {
      const { view } = await vegaEmbed(live, spec, options);
      views.push({ view, follows: (spec.params ?? []).map((param) => param.name) });
    } catch (error) {
      live.remove();
      box.classList.remove("is-live");
      throw error;
    }
  }

  function equip(tool) {
    const name = tool.dataset.tool;
    const slider = tool.querySelector("input");
    const blocks = tool.querySelectorAll(".strip i");
    const show = () => {
      const { value, says, texts } = frames[name][slider.value];
      slider.setAttribute("aria-valuetext", says);
      for (const [field, text] of Object.entries(texts)) {
        const element = tool.querySelector(`[data-field="${field}"]`);
        if (element) element.textContent = text;
      }
      blocks.forEach((block, k) => block.classList.toggle("off", k >= value));
      for (const { view, follows } of views) {
        if (follows.includes(name)) view.signal(name, value).runAsync();
      }
    };
    slider.addEventListener("input", show);
    tool.hidden = false;
    show();
    const copy = tool.querySelector("[data-copy]");
    copy?.addEventListener("click", () => copyText(copy, tool.querySelector("code")));
    const play = tool.querySelector("[data-play]");
    play?.addEventListener("click", () => playOrPause(play, slider, show));
  }

  async function copyText(button, source) {
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }

  function playOrPause(button, slider, show) {
    const stop = () => {
      clearInterval(Number(button.dataset.timer));
      delete button.dataset.timer;
      button.textContent = "Play";
    };
    if (button.dataset.timer) return stop();
    const last = Number(slider.max);
    if (Number(slider.value) === last) slider.value = 0;
    show();
    button.textContent = "Pause";
    button.dataset.timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) >= last) stop();
    }, Math.min(600, Math.max(80, 6000 / (last + 1))));
  }

  Promise.all([...document.querySelectorAll("[data-chart]")].map(enliven)).then(() => {
    document.querySelectorAll("[data-tool]").forEach(equip);
    document.documentElement.dataset.ready = "yes";
  });
})();
