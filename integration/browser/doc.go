// Package browser tests what pgbridge shows in a browser, in Chromium: through the real page, against real clusters. It is a module of its
// own, since nothing else needs what it drives the browser with.
package browser
