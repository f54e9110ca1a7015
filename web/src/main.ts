/** The same file is the page and its worker. */

import { startPage } from "./page";
import { serveRecogniser } from "./recogniser";

if (typeof document === "undefined") serveRecogniser();
else void startPage();
