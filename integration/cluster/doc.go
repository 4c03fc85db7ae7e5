// Package cluster runs whole pgbridge clusters for tests: real PostgreSQL, bridges in process or as
// processes of their own, links that can be cut and slowed down, and a judge that compares the rows of
// all nodes from outside.
//
// Begin with New. Goroutines: one per bridge in process, those of the links; all end with the test.
package cluster
