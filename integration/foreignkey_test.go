package integration

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

const foreignKeySchema = `
CREATE TABLE parent (id int PRIMARY KEY, v text, made int GENERATED ALWAYS AS (id * 2) STORED);
CREATE TABLE restored (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE TABLE deleted (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE);
CREATE TABLE nulled (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE TABLE stuck (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent);
CREATE TABLE kept (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE TABLE pair (a int, b text, v text, PRIMARY KEY (a, b)) PARTITION BY LIST (b);
CREATE TABLE pair_x PARTITION OF pair FOR VALUES IN ('x');
CREATE TABLE of_pair (id int PRIMARY KEY, a int, b text, FOREIGN KEY (a, b) REFERENCES pair);
CREATE TABLE counted (id int PRIMARY KEY, n int);
ALTER TABLE counted REPLICA IDENTITY FULL;
CREATE TABLE of_counted (id int PRIMARY KEY, counted int REFERENCES counted);
`

// TestForeignKeyPolicies: a parent that is deleted beside the insert of its child comes back, or the child goes with it, or lets
// go of it, as the foreign key's policy says. One node does that, and the others follow.
func TestForeignKeyPolicies(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Majors: []int{pgtest.Newest(t)}, Nodes: 3, Schema: foreignKeySchema, Config: map[string]string{
		"conflict.foreign_keys": "*.kept.*=keep, *.deleted.*=delete, *.nulled.*=null, *.stuck.*=null, *.*.*=restore",
		"conflict.tables":       "*.counted: n=delta"}})
	p := &pitfalls{c, c.Nodes[0], c.Nodes[1], c.Nodes[2]}
	p.a.Exec(`INSERT INTO parent SELECT i, 'row ' || i FROM generate_series(1, 20) i; INSERT INTO pair VALUES (1, 'x', 'pair'); INSERT INTO counted VALUES (1, 5)`)
	p.a.Exec(`INSERT INTO deleted VALUES (20, 20)`)
	p.WaitConverged()

	p.apart()
	p.a.Exec(`DELETE FROM parent WHERE id IN (1, 2, 3, 5, 6, 20); DELETE FROM pair; DELETE FROM counted`)
	p.a.Exec(`UPDATE parent SET id = 104 WHERE id = 4`)
	p.b.Exec(`INSERT INTO restored VALUES (1, 1), (4, 4); INSERT INTO deleted VALUES (2, 2), (20, 20) ON CONFLICT DO NOTHING; INSERT INTO of_pair VALUES (1, 1, 'x')`)
	p.z.Exec(`INSERT INTO nulled VALUES (3, 3); INSERT INTO kept VALUES (5, 5); INSERT INTO stuck VALUES (6, 6); INSERT INTO of_counted VALUES (1, 1)`)
	p.together()
	const state = `SELECT string_agg(r, ' ' ORDER BY r) FROM (SELECT 'parent ' || concat_ws(',', id, v, made) r FROM parent WHERE id NOT BETWEEN 7 AND 19
		UNION ALL SELECT 'restored ' || concat_ws(',', id, parent) FROM restored UNION ALL SELECT 'deleted ' || id FROM deleted
		UNION ALL SELECT 'nulled ' || concat_ws(',', id, parent) FROM nulled UNION ALL SELECT 'kept ' || concat_ws(',', id, parent) FROM kept
		UNION ALL SELECT 'stuck ' || concat_ws(',', id, parent) FROM stuck
		UNION ALL SELECT 'pair ' || concat_ws(',', a, b, v) FROM pair UNION ALL SELECT 'counted ' || concat_ws(',', id, n) FROM counted) x`
	want := "counted 1,5 kept 5,5 nulled 3 pair 1,x,pair parent 1,row 1,2 parent 104,row 4,208 parent 4,row 4,8 restored 1,1 restored 4,4 stuck 6,6"
	for _, n := range p.Nodes {
		n.Await(state, want)
	}
	p.WaitConverged()
	var mended []string
	for _, n := range p.Nodes {
		mended = append(mended, n.Name+" "+n.Value(`SELECT COALESCE(string_agg(relation, ' ' ORDER BY relation), '') FROM pgbridge.conflict WHERE kind = 'orphan'`))
	}
	if got, want := strings.Join(mended, "; "), "a ; b public.deleted public.pair public.parent public.parent; c public.counted public.nulled"; got != want {
		t.Errorf("orphans mended: %q, want %q", got, want)
	}
	// What the server refuses is told, and tried again.
	p.z.AwaitStatus(func(r *cluster.Report) bool {
		for _, a := range r.Alarms {
			if a.Code == "orphan-refused" {
				return true
			}
		}
		return false
	})
	p.z.Exec(`ALTER TABLE stuck ALTER parent DROP NOT NULL`)
	p.a.Exec(`ALTER TABLE stuck ALTER parent DROP NOT NULL`)
	p.b.Exec(`ALTER TABLE stuck ALTER parent DROP NOT NULL`)
	p.z.Stop()
	p.z.Start() // is sooner than its next try
	p.z.Await(`SELECT concat_ws(',', id, parent) FROM stuck`, "6")
	p.z.Await(`SELECT count(*) FROM pgbridge.bereaved`, "0")
	p.WaitConverged()
}
