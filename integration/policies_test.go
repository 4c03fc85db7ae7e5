package integration

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
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

// TestClocksAreCompared: each node knows how far the others' clocks are from its own, and the history goes by that.
func TestClocksAreCompared(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY)`})
	for _, n := range c.Nodes {
		n.Await(`SELECT count(*) FROM pgbridge.clock`, "1")
		if got := n.Value(`SELECT abs(ahead_us) <= within_us FROM pgbridge.clock`); got != "t" {
			t.Errorf("node %s: one machine's clocks are %s apart", n.Name, n.Value(`SELECT ahead_us || ' within ' || within_us FROM pgbridge.clock`))
		}
		h, err := bridge.OpenHistory(t.Context(), n.Load(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if most, source := h.ClockError(); source != bridge.ClockMeasured || most <= 0 {
			t.Errorf("the history goes by %s, %s", most, source)
		}
		h.Close(t.Context())
	}
}
