// Package rowkey owns the question which spellings of a row key are one key at this node.
//
// Capture and apply of one node must hash a key alike (PROOF.md R15, R17, R18, R21), whatever way it came
// to them; the answer is in the local catalog, and for some types in a function of the server. Types of
// key columns come in from both, with their collations; [wire.KeyType]s go out, by which package wire
// hashes most keys alone, and digests of the values that it cannot hash: those of citext, of text under a
// nondeterministic collation, and of extensions' types.
//
// What the catalog says is trusted: a btree operator class whose equal values have equal images (support
// function 4, which is what deduplication rests on) makes a type one that is hashed by its bytes, a hash
// operator class with the extended function (2) makes it one that the server hashes. Types with neither
// are refused. The operators are the types' default ones: a key under another operator class may be
// finer, never coarser. Digests do not outlast the server's major version, nor that of the library behind
// a collation.
//
// There are no goroutines here, and no connection: callers lend theirs. When the server is away, its
// error is the answer.
//
// Begin reading with [Types.Key], then [Digests.Hash]. Sources: PostgreSQL, "Index Method Support Routines"
// of btree and of hash; GetDefaultOpClass in src/backend/commands/indexcmds.c.
package rowkey
