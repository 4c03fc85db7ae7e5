package integration

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestPoliciesMustAgree: nodes that decide conflicts by other policies do not read each other, and say why, until they have the
// same; then nothing is missing.
func TestPoliciesMustAgree(t *testing.T) {
	t.Parallel()
	config := map[string]string{"conflict.tables": "*.counter: n=delta"}
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: mergedSchema, Config: config})
	a, b := c.Nodes[0], c.Nodes[1]
	a.Exec(`UPDATE counter SET n = n + 1 WHERE id = 1`)
	c.WaitConverged()

	b.Stop()
	a.Exec(`UPDATE counter SET n = n + 1 WHERE id = 1`)
	config["conflict.tables"] = "*.counter: n=max"
	b.Start()
	b.Exec(`UPDATE counter SET n = n + 10 WHERE id = 1`)
	for _, n := range c.Nodes {
		n.AwaitStatus(func(r *cluster.Report) bool {
			return r.Links[0].Disagrees && strings.Contains(r.Links[0].Waiting, `"*.counter: n=max"`) && strings.Contains(r.Links[0].Waiting, `"*.counter: n=delta"`) &&
				len(r.Alarms) == 1 && r.Alarms[0].Code == "policies-differ"
		})
	}
	if got := a.Value(`SELECT n FROM counter WHERE id = 1`) + " " + b.Value(`SELECT n FROM counter WHERE id = 1`); got != "2 11" {
		t.Errorf("the counters are %s while the nodes disagree", got)
	}

	b.Stop()
	config["conflict.tables"] = "*.counter: n=delta"
	b.Start()
	c.WaitConverged()
	if got := a.Value(`SELECT n FROM counter WHERE id = 1`); got != "12" {
		t.Errorf("the counter is %s", got)
	}
}
