// Opens the page of a running ComfyUI in Chromium, loads a workflow, and prints as JSON what a user would see.
//
//   NODE_PATH=<node_modules with playwright-core> node page.mjs --url URL --workflow FILE [options]
//
//   --renderer NAME    classic (the default) or vue, which ComfyUI calls Nodes 2.0
//   --queue            press Run and wait for the end
//   --screenshot FILE  PNG of the page, zoomed to the whole workflow
//   --close            the screenshot shows the workflow alone, larger
//   --save-ui FILE     the workflow as the page saves it
//   --save-api FILE    the workflow as the page sends it to the server
//   --script FILE      a function expression, called in the page with nothing after loading (and queueing); what it
//                      returns is reported as "script"
//   --timeout SECONDS  for each wait (300)
//
// A workflow in API format is laid out by the page itself. CHROMIUM names the browser (/usr/bin/chromium).
// Requests that do not go to the server are refused and reported under "blocked".

import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { parseArgs } from "node:util";

const { chromium } = createRequire(import.meta.url)("playwright-core");

const text = { type: "string" };
const { values: options } = parseArgs({
  options: {
    url: text, workflow: text, queue: { type: "boolean" }, screenshot: text, close: { type: "boolean" }, script: text,
    "save-ui": text, "save-api": text, renderer: { type: "string", default: "classic" }, timeout: { type: "string", default: "300" },
  },
});
const timeout = 1000 * Number(options.timeout);
const workflow = JSON.parse(await readFile(options.workflow, "utf8"));
const report = { blocked: [], failed: [], console: [], page_errors: [] };

const settings = {
  // A new user is greeted with the template browser and news, which would cover the page.
  "Comfy.VueNodes.Enabled": options.renderer === "vue",
  "Comfy.TutorialCompleted": true,
  "Comfy.Notification.ShowVersionUpdates": false,
  // Any other value makes frontend 1.27 set settings that are not there yet, an error in its console.
  "Comfy.Canvas.NavigationMode": "custom",
  // For readable screenshots: text at every zoom (the former until 1.28, the latter since), nothing over the workflow.
  "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0,
  "LiteGraph.Canvas.MinFontSizeForLOD": 0,
  "Comfy.Minimap.Visible": false,
  "Comfy.Graph.CanvasInfo": false,
  "Comfy.RightSidePanel.IsOpen": false, // it stays open once it was
};
await fetch(`${options.url}/settings`, { method: "POST", body: JSON.stringify(settings) });

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  // WebGL 2 without a GPU; all else is drawn without it, for half the time.
  args: ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--disable-accelerated-2d-canvas",
    "--disable-gpu-compositing"],
});
try {
  const size = { viewport: { width: 1920, height: 1080 }, deviceScaleFactor: options.close ? 1.5 : 1 };
  const context = await browser.newContext({ ...size, serviceWorkers: "block" });
  const page = await context.newPage();
  page.setDefaultTimeout(timeout);
  await context.route("**/*", (route) => {
    const url = route.request().url();
    if (url.startsWith(options.url)) return route.continue();
    report.blocked.push(url);
    return route.abort();
  });
  page.on("response", (r) => r.status() >= 400 && report.failed.push(`${r.status()} ${r.url()}`));
  page.on("console", (m) => {
    // In report.failed or report.blocked; or the page's own rules forbid it to ask how large a model is.
    const told = m.text().startsWith("Failed to load resource") || m.text().includes("Content Security Policy");
    if (m.type() === "error" && !told) report.console.push(m.text());
  });
  page.on("pageerror", (e) => report.page_errors.push(String(e.stack ?? e)));

  const start = Date.now();
  // The page loads its own first graph, which would replace a workflow that came before. Afterwards, as the last thing,
  // it asks for how often nodes are used.
  const last = page.waitForResponse(/sorted-custom-node-map/);
  await page.goto(options.url);
  await last;
  await page.waitForFunction(() => {
    const { app } = window;
    const workspace = app?.vueAppReady && app.extensionManager;
    return workspace && !workspace.spinner && workspace.workflow?.activeWorkflow && app.graph?.nodes.length;
  });
  report.ready_seconds = (Date.now() - start) / 1000;
  report.console.length = 0; // what the page says of its own first graph

  await page.evaluate(async (workflow) => {
    const { app } = window;
    if (Array.isArray(workflow.nodes)) await app.loadGraphData(workflow);
    else app.loadApiJson(workflow, "workflow");
  }, workflow);
  const fitView = async () => {
    await page.evaluate(async () => {
      const { app } = window;
      await app.extensionManager.command.execute("Comfy.Canvas.FitView");
      for (let still = 0, before = ""; still < 20; ) { // it is animated
        await new Promise(requestAnimationFrame);
        const now = [app.canvas.ds.scale, ...app.canvas.ds.offset].join();
        still = now === before ? still + 1 : 0;
        before = now;
      }
    });
  };
  await fitView();

  if (options.queue) {
    await page.evaluate((timeout) => {
      const { api } = window.app;
      const executed = {};
      api.addEventListener("executed", ({ detail }) => (executed[detail.node] = detail.output));
      window.runEnded = new Promise((resolve) => {
        api.addEventListener("execution_success", () => resolve({ status: "success", executed }));
        api.addEventListener("execution_interrupted", () => resolve({ status: "interrupted", executed }));
        api.addEventListener("execution_error", ({ detail }) =>
          resolve({ status: "error", node: detail.node_type, message: detail.exception_message, executed }));
        setTimeout(() => resolve({ status: "timeout", executed }), timeout);
      });
    }, timeout);
    const answered = page.waitForResponse((r) => r.request().method() === "POST" && /\/prompt$/.test(r.url()));
    await page.evaluate(() => window.app.queuePrompt(0));
    const answer = await answered;
    if (answer.ok()) report.run = await page.evaluate(() => window.runEnded);
    else report.run = { status: "rejected", executed: {}, ...(await answer.json()) };
    await fitView(); // a node loads its pictures when it is drawn
    const drawn = Object.entries(report.run.executed).filter(([, output]) => output?.images?.length).map(([id]) => id);
    const loaded = (ids) => ids.every((id) => {
      const node = window.app.graph.getNodeById(id);
      if (!node) return true; // it is in a subgraph
      const images = [...(node.imgs ?? document.querySelectorAll(`[data-node-id="${id}"] :is(img, video)`))]; // Nodes 2.0
      return images.length && images.every((image) => image.naturalWidth || image.videoWidth);
    });
    report.run.previews_shown = await page.waitForFunction(loaded, drawn).then(() => true, () => false);
  }

  Object.assign(report, await page.evaluate(() => {
    const { app, LiteGraph } = window;
    const all = (graph) => graph.nodes.flatMap((n) => (n.subgraph ? [n, ...all(n.subgraph)] : [n]));
    const choices = (w) => (typeof w.options?.values === "function" ? w.options.values(w) : w.options?.values);
    return {
      nodes: all(app.graph).map((n) => ({
        id: String(n.id), // which it is already in frontend 1.49
        type: n.type,
        title: n.title,
        missing: !n.subgraph && !(n.type in LiteGraph.registered_node_types),
        errors: Boolean(n.has_errors),
        widgets: Object.fromEntries((n.widgets ?? []).map((w) => [w.name, w.value])),
        // Combos with a value that is not on offer; the page marks these red when the workflow is run.
        red_widgets: (n.widgets ?? [])
          .filter((w) => w.type === "combo" && Array.isArray(choices(w)) && !choices(w).includes(w.value))
          .map((w) => w.name),
        unlinked: (n.inputs ?? [])
          .filter((i) => i.link == null && !i.widget && i.shape !== LiteGraph.GRID_SHAPE && i.shape !== 7)
          .map((i) => i.name), // shape 7 is an optional input's
        previews: [...(n.imgs ?? document.querySelectorAll(`[data-node-id="${n.id}"] img`))]
          .map((i) => [i.naturalWidth, i.naturalHeight]),
      })),
      dialogs: [...document.querySelectorAll("[role=dialog], .p-toast-message")].map((e) => e.innerText),
      node_errors: app.lastNodeErrors ?? null,
    };
  }));
  if (options.script) {
    const answer = page.evaluate(`(${await readFile(options.script, "utf8")})()`);
    const late = new Promise((_, reject) =>
      setTimeout(reject, timeout, new Error(`no end of ${options.script}`)).unref());
    report.script = await Promise.race([answer, late]);
  }
  if (options["save-ui"] || options["save-api"]) {
    const saved = await page.evaluate(() => window.app.graphToPrompt());
    if (options["save-ui"]) await writeFile(options["save-ui"], JSON.stringify(saved.workflow, null, 2));
    if (options["save-api"]) await writeFile(options["save-api"], JSON.stringify(saved.output, null, 2));
  }
  if (options.screenshot) {
    await fitView();
    const clip = await page.evaluate(() => { // what the nodes and groups take, and a little around it
      const { graph, canvas } = window.app;
      const boxes = [...graph.nodes.map((node) => node.getBounding()), ...graph.groups.map((group) => group._bounding)];
      const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])));
      const [right, bottom] = [0, 1].map((i) => Math.max(...boxes.map((box) => box[i] + box[i + 2])));
      const { scale, offset: [dx, dy] } = canvas.ds;
      const { x, y } = canvas.canvas.getBoundingClientRect();
      const margin = 20;
      return { x: x + (left + dx) * scale - margin, y: y + (top + dy) * scale - margin,
        width: (right - left) * scale + 2 * margin, height: (bottom - top) * scale + 2 * margin };
    });
    await page.screenshot({ path: options.screenshot, ...(options.close ? { clip } : {}) });
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(report, null, 2));
