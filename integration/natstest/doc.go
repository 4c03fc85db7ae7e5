// Package natstest gives tests real NATS servers with JetStream.
//
// In come Options; out goes a server on loopback, on a free port, with its store
// in a temporary directory: in the test binary (New), where it can be stopped and
// started again on the same port and store, or as a process of its own
// (StartProcess), which can be killed with SIGKILL, or several that replicate
// (NewCluster). A Proxy stands between a
// client and a server and cuts, refuses or holds back what passes, which is how a
// test makes a link fail at the moment it wants.
//
// A package whose tests use StartProcess says
//
//	func TestMain(m *testing.M) { natstest.Main(m) }
//
// since the process is the test binary itself, started again. It ends when its
// standard input does, so none outlives the tests.
//
// The stores are not synced to disk unless Options say so: a killed process loses
// nothing by that, only a power cut would. The package knows nothing of pgbridge.
//
// Goroutines: two for each connection through a Proxy and one that accepts them;
// Proxy.Close ends and joins them. Begin reading at New in server.go.
package natstest
