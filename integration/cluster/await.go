package cluster

import (
	"context"
	"strings"

	"github.com/pgbridge/pgbridge/bridge"
)

// Report is a bridge's own report.
type Report = bridge.Report

// Alarm is one of a report's.
type Alarm = bridge.Alarm

// Await waits until a query gives a value on the node.
func (n *Node) Await(sql, want string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), convergeTime)
	defer cancel()
	got := ""
	for ctx.Err() == nil {
		if got = strings.Join(n.Query(sql), "\n"); got == want {
			return
		}
		pause(ctx)
	}
	n.t.Fatalf("node %s: %s gives %s, not %s\n%s\n%s", n.Name, sql, got, want, n.statusText(), n.LogTail())
}

// AwaitLike waits until a query gives the same on this node as on another one.
func (n *Node) AwaitLike(other *Node, sql string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), convergeTime)
	defer cancel()
	var here, there string
	for ctx.Err() == nil {
		if here, there = strings.Join(n.Query(sql), "\n"), strings.Join(other.Query(sql), "\n"); here == there {
			return
		}
		pause(ctx)
	}
	n.t.Fatalf("%s gives on node %s\n%s\non node %s\n%s", sql, n.Name, here, other.Name, there)
}

// AwaitStatus waits until the node's bridge reports what ok wants.
func (n *Node) AwaitStatus(ok func(*Report) bool) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), convergeTime)
	defer cancel()
	for ctx.Err() == nil {
		if ok(n.Status()) {
			return
		}
		pause(ctx)
	}
	n.t.Fatalf("node %s reports\n%s\n%s", n.Name, n.statusText(), n.LogTail())
}
