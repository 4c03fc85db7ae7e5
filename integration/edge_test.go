package integration

import (
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestEdgeTwo: two
func TestEdgeTwo(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]map[string]string{
		"two": {"topology.roles": "b=edge"},
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Nodes: 2, Schema: loadSchema, Config: config})
			l := startLoad(t, c, 1, seed(t))
			l.run(loadTime() / 2)
			c.WaitConverged()
			requireCounts(t, c, l)
		})
	}
}

func TestEdgeStar(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 4, Schema: loadSchema, Config: map[string]string{
		"topology.kind": "star", "topology.center": "a", "topology.roles": "b=edge,c=edge", "topology.failover_after": failoverAfter.String()}})
	l := startLoad(t, c, 1, seed(t))
	l.run(loadTime() / 2)
	c.WaitConverged()
	requireCounts(t, c, l)
	t.Log(c.Nodes[0].LogTail())
}
