// Run tools/pyodide_checks.py on Pyodide, which is CPython on WebAssembly, in Node.js.
//
//     node tools/pyodide.mjs FOLDER
//
// FOLDER has what `make pyodide` puts there: node_modules with Pyodide, and in site-packages the
// pure wheels of what httpmw needs. The exit code is 1 where a check fails.

import path from "node:path";
import process from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";

const folder = path.resolve(process.argv[2]);
const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");

const home = path.join(folder, "node_modules", "pyodide", "pyodide.mjs");
const { loadPyodide } = await import(pathToFileURL(home).href);
const pyodide = await loadPyodide({ env: { HOME: "/home", PYTHONDONTWRITEBYTECODE: "1" } });

// Both folders are only read.
for (const [place, real] of [["/httpmw", root], ["/site", path.join(folder, "site-packages")]]) {
    pyodide.FS.mkdirTree(place);
    pyodide.FS.mount(pyodide.FS.filesystems.NODEFS, { root: real }, place);
}
const failed = await pyodide.runPythonAsync(`
import sys
sys.path[:0] = ["/httpmw", "/site"]
from tools.pyodide_checks import main
await main()
`);
process.exit(failed ? 1 : 0);
