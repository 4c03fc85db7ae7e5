// Package pgtest gives tests databases on real PostgreSQL servers.
//
// In come the versions to test with (PGBRIDGE_TEST_PG, such as "15,16,17,18";
// unset is "15,18"); out go databases with unique names (New, NewDatabase) on
// one shared server for each version, or a cluster of the test's own that it may
// configure, stop and kill (NewCluster). Nothing is skipped: a version that is
// not installed fails the test, with the command that installs it.
//
// A package that uses it says
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
// so that the shared servers, which are started on first use, are stopped when
// its tests have ended. They run with fsync=off: they are for what a feature
// does, not for how fast it is. Slots and replication origins belong to the
// whole server, not to a database: a test names them after Database.Name, by
// using that as pgbridge's cluster name, and what carries it is dropped with the
// database.
//
// It knows nothing of pgbridge but this way of naming. Goroutines: none of its
// own; package pgcluster waits for the servers. Begin reading at New in
// database.go.
package pgtest
