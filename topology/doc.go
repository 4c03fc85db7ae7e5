// Package topology owns who reads from whom: the nodes of a cluster and the links between them, as a graph, and the
// ways of frames through it.
//
// It is pure: every node computes the same ways from the same graph, so that nobody has to agree on anything. Each
// origin's frames take a tree of shortest ways, and so cross every link that they use once.
//
// Ways lead on through an edge, a node that nobody can dial, only where there is no other one.
//
// Where nodes and links die, a [View] says which ones live, by what nodes say of each other, and which ways are open.
//
// There are no goroutines, no clock and no I/O here. Begin reading with [Graph].
package topology
