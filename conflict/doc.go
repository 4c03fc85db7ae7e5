// Package conflict decides what becomes of writes to one row that had not seen each other, for all nodes alike.
//
// There are two ways. For most tables a [Case] comes from apply's careful path: what stands at this node,
// what the remote transaction wants, the version of each, and whether one had seen the other. A [Decision]
// goes back: who wins and whether it was a conflict worth keeping. For merged tables apply keeps a row as it
// was before, the base, with the log of [Logged] writes that not all nodes are known to have; [Rules.Diff]
// makes a write's ops at its author, and [Rules.Merge] makes the row. The package keeps invariants 2 (every
// node decides alike) and 5 (only concurrent writes conflict). It does not know SQL, tables, the network or
// the time of day, and it touches nothing.
//
// There are no goroutines, no I/O and no state. A policy must be a pure function of its Case and
// commutative over concurrent versions: [Policy] values are only handed out by [ByName], so that a
// policy that would not converge cannot be configured. Merge is a pure function of base and the set of
// writes. Three laws hold for each rule, and simulated replicas check them:
//
//   - A write that covers and has really seen all others leaves its author's row, byte for byte (arrays but for
//     the has-null flag, which array_recv makes anew).
//   - The order of the writes does not matter.
//   - A part of the log that all other writes cover and have really seen can be folded into base, or not.
//
// What an author may have seen (Covers) is not what was in his row: a remote write can have been announced and
// not applied. Rows, pick rules, counters and JSON go by Covers. Texts and sets need the very version that
// positions count in, and find it by its hash. What a hash cannot tell is a transaction without net effect,
// and whatever came to a row that stays deleted; an edit that finds no version deletes only elements of the
// values that it deleted, so that no character is lost that nobody deleted. A delete takes what it covers.
//
// Begin with conflict.go, or for merged tables with merge.go, then history.go (order, heads, cuts, what was
// seen), counter.go, json.go, script.go and sequence.go. Last writer wins over hybrid stamps: PROOF.md R5 and
// section 7. Sequences: Weidner and Kleppmann, "The Art of the Fugue", 2023; edit scripts: Myers, "An O(ND)
// Difference Algorithm and Its Variations", 1986. Replays of operations on the version that they were made
// on: Gentle and Kleppmann, "Collaborative Text Editing with Eg-walker", 2025. Sets: Shapiro et al.,
// "Conflict-free Replicated Data Types", 2011 (observed-remove).
package conflict
