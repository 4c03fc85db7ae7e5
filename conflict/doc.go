// Package conflict decides which of two versions of one row wins, for all nodes alike.
//
// A [Case] comes from apply's careful path: what stands at this node, what the remote transaction wants,
// the version of each, and whether one had seen the other. A [Decision] goes back: who wins and whether
// it was a conflict worth keeping. The package keeps invariants 2 (every node decides alike) and 5 (only
// concurrent writes conflict). It does not know SQL, tables, the network or the time of day, and it
// touches nothing.
//
// There are no goroutines, no I/O and no state. A policy must be a pure function of its Case and
// commutative over concurrent versions: [Policy] values are only handed out by [ByName], so that a
// policy that would not converge cannot be configured.
//
// Begin with conflict.go. Last writer wins over hybrid stamps: PROOF.md R5 and section 7.
package conflict
