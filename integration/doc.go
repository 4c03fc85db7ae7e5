// Package integration holds the tests of whole clusters: what pgbridge promises, shown on real PostgreSQL
// and real NATS. The harness is in cluster, the servers in pgcluster and pgtest. Nothing is here but
// tests; begin with converge_test.go.
package integration
