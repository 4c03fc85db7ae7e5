// The status of the node, asked for each second while somebody looks, with the samples of the last minutes.
import { get } from "./api.js";

export const span = 300; // seconds of samples that are kept
const every = 1000;
const othersEvery = 4000;

export const watched = { status: null, others: [], samples: [], rates: {}, otherRates: {} };

const listeners = new Set();
let timer, running = false, askedOthers = 0, wantOthers = 0;

// watch calls fn now and whenever there is a new status; what it returns ends that. With others those of other nodes are asked for, too.
export function watch(fn, { others = false } = {}) {
	listeners.add(fn);
	if (others) wantOthers++;
	if (watched.status) fn(watched);
	return () => {
		listeners.delete(fn);
		if (others) wantOthers--;
	};
}

// applied is how many transactions a report says are applied, by origin, with the node's own.
function applied(report) {
	const seqs = { [report.node]: report.seq };
	for (const link of report.links) seqs[link.origin] = link.applied_seq;
	return seqs;
}

// ratesOf gives transactions a second between two reports of a node, by origin.
function ratesOf(before, after) {
	const rates = {};
	const took = before ? (new Date(after.at) - new Date(before.at)) / 1000 : 0;
	if (took <= 0) return null;
	const old = applied(before);
	for (const [origin, seq] of Object.entries(applied(after))) {
		if (old[origin] !== undefined && seq >= old[origin]) rates[origin] = (seq - old[origin]) / took;
	}
	return rates;
}

function take(status) {
	const before = watched.status?.report;
	const rates = ratesOf(before, status.report);
	if (rates) watched.rates = rates;
	watched.status = status;
	const now = Date.now();
	const lags = Object.fromEntries(status.report.links.map((link) => [link.origin, link.lag_seconds]));
	watched.samples.push({ at: now, lags, rates: rates ?? {} });
	while (watched.samples[0].at < now - span * 1000) watched.samples.shift();
}

function takeOthers(all) {
	for (const other of all) {
		const before = watched.others.find((x) => x.node === other.node)?.report;
		const rates = before && other.report ? ratesOf(before, other.report) : null;
		if (rates) watched.otherRates[other.node] = rates;
		else if (!before || !other.report) delete watched.otherRates[other.node];
	}
	watched.others = all;
}

async function askOthers() {
	if (!wantOthers || Date.now() - askedOthers < othersEvery) return;
	askedOthers = Date.now();
	try {
		takeOthers(await get("others"));
	} catch {
		watched.others = []; // the status says what is wrong
	}
}

async function look() {
	if (!running) return;
	if (!document.hidden) {
		try {
			take(await get("status"));
			askOthers();
			document.dispatchEvent(new CustomEvent("lost", { detail: null }));
			for (const fn of listeners) fn(watched);
		} catch (error) {
			document.dispatchEvent(new CustomEvent("lost", { detail: error }));
		}
	}
	if (running) timer = setTimeout(look, every);
}

export function begin() {
	if (running) return;
	running = true;
	look();
}

export function end() {
	running = false;
	clearTimeout(timer);
	Object.assign(watched, { status: null, others: [], samples: [], rates: {}, otherRates: {} });
}
