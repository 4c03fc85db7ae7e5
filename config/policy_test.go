package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var somePolicies = []TablePolicy{
	{Match: "app.stock*", Deletes: "update_wins", Columns: []ColumnPolicy{
		{Names: []string{"quantity"}, Policy: "delta"}, {Names: []string{"street", "zip code"}, Policy: "first_writer_wins"},
		{Names: []string{"*"}, Policy: "last_writer_wins"}}},
	{Match: "app.Odd table", Rows: "first_writer_wins", Columns: []ColumnPolicy{{Names: []string{`say "so"`}, Policy: "text_merge"}}},
	{Match: "app.rows", Columns: []ColumnPolicy{{Names: []string{".rows"}, Policy: "max"}, {Names: []string{"rows"}, Policy: "min"}}},
	{Match: "app.plain"},
}

// TestPoliciesInOneLine: what is written in one line is read as it was.
func TestPoliciesInOneLine(t *testing.T) {
	text := formatPolicies(somePolicies)
	got, err := parsePolicies(text)
	if err != nil || !reflect.DeepEqual(got, somePolicies) {
		t.Fatalf("%s\nis read as %+v, %v", text, got, err)
	}
	if got, err := parsePolicies(""); err != nil || got != nil {
		t.Errorf("nothing is read as %v, %v", got, err)
	}
	for text, want := range map[string]string{
		"app.t":                "missing",
		"app.t: n":             `"=" is missing`,
		"app.t: n=":            "a name is missing",
		`app.t: "n=delta`:      "closing quote",
		"app.t: n=delta m=max": `"," or ";" is missing`,
		"app.t: (n, m=delta":   "name is missing",
	} {
		if _, err := parsePolicies(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is refused with %v, want %q", text, err, want)
		}
	}
}

func loadPolicies(t *testing.T, text string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	head := "cluster: shop\nnode: a\npostgres:\n  dsn: postgres://x@/app\ntopology:\n  nodes:\n    a: nats://127.0.0.1:4222\n    b: nats://127.0.0.1:4223\nconflict:\n"
	if err := os.WriteFile(path, []byte(head+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path, nil)
}

// TestPoliciesInTheFile: the file has them as maps, column names as they are.
func TestPoliciesInTheFile(t *testing.T) {
	cfg, err := loadPolicies(t, `
  priority: [b, a]
  tables:
    app.stock*:
      deletes: update_wins
      columns:
        quantity: delta
        street, zip code: first_writer_wins
        "*": last_writer_wins
    app.Odd table:
      rows: first_writer_wins
      columns:
        say "so": text_merge
    app.rows:
      columns: {.rows: max, rows: min}
    app.plain: origin_priority
`)
	if err != nil {
		t.Fatal(err)
	}
	want := append([]TablePolicy(nil), somePolicies...)
	want[3].Rows = "origin_priority"
	if !reflect.DeepEqual(cfg.Conflict.Tables, want) || !reflect.DeepEqual(cfg.Conflict.Priority, []string{"b", "a"}) {
		t.Errorf("read as %+v", cfg.Conflict)
	}
}

// TestWrongPoliciesAreRefused: each error names the place and the mend.
// TestPitfall16ArrivalOrderIsRefused: what goes by the order of arrival leaves nodes different, and cannot be configured.
func TestPitfall16ArrivalOrderIsRefused(t *testing.T) {
	for _, policy := range []string{"skip", "arrival", "keep_local", "apply_remote", "ignore", "error"} {
		for _, text := range []string{"  tables: {app.t: " + policy + "}", "  tables: {app.t: {columns: {a: " + policy + "}}}", "  tables: {app.t: {deletes: " + policy + "}}"} {
			if _, err := loadPolicies(t, text+"\n"); err == nil {
				t.Errorf("%s is taken", text)
			}
		}
	}
}

func TestWrongPoliciesAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"  tables: {app.t: arrival}":                                           "does not exist",
		"  tables: {app.t: delta}":                                             "for a single column",
		"  tables: {app.t: {columns: {a: sum}}}":                               "column a",
		"  tables: {app.t: {columns: {\"a, b\": delta}}}":                      "for a single column",
		"  tables: {app.t: {deletes: never}}":                                  "deletes",
		"  tables: {app.t: {column: {a: delta}}}":                              `"column" is unknown here`,
		"  tables: {app.t: origin_priority}":                                   "needs conflict.priority",
		"  foreign_keys: [app.t.*]":                                            `"app.t.*" has no policy that is known`,
		"  foreign_keys: [app.t.*=drop]":                                       "write schema.table.constraint=restore",
		"  foreign_keys: [app.t=null]":                                         `write "app.t.*=null"`,
		"  foreign_keys: [app.t.*=null, app.t.*=keep]":                         "is given twice",
		"  home: [app.t]":                                                      `write it like "shop.item=region"`,
		"  home: [t=region]":                                                   `write it like "shop.item=region"`,
		"  home: [app.t=region, app.t=other]":                                  "is given twice",
		"  home_nodes: [eu]":                                                   `"eu" does not end with a node`,
		"  home_nodes: [eu=nowhere]":                                           `"eu=nowhere" does not end with a node`,
		"  tables: {app.t: home_wins}":                                         "home_wins needs conflict.home",
		"  home: [app.t=region]\n  tables: {app.t: {columns: {v: home_wins}}}": "home_wins is for whole rows",
		"  priority: [z]":                                                      `"z" is not in topology.nodes`,
		"  tables: {stock: first_writer_wins}":                                 "not schema.table",
		"  tables: [app.t]":                                                    "wants tables with policies",
		"  tables: {app.t: [a]}":                                               "wants a policy",
		"  tables:\n    app.t: last_writer_wins\n    app.t: max":               "twice",
		"  tables: {app.t: {columns: delta}}":                                  "wants columns",
		"  tables: {app.t: {columns: {a: [delta]}}}":                           "wants one policy for column a",
		"  tables: {app.t: {rows: {a: b}}}":                                    "wants one policy for rows",
		"  default: first_writer_wins":                                         "not allowed",
		"  tables: {app.t: {columns: {a: delta}}, app.u: {rows: x}}":           "app.u",
	} {
		if _, err := loadPolicies(t, text+"\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\nis refused with %v, want %q", text, err, want)
		}
	}
}

// TestPoliciesThatNodesShare: whatever decides otherwise on a node that has it otherwise.
func TestPoliciesThatNodesShare(t *testing.T) {
	all := (&Config{}).Policies()
	for _, key := range []string{"conflict.default", "conflict.tables", writersKey, residencyKey, rowsKey, columnsKey} {
		if _, there := all[key]; !there {
			t.Errorf("%s need not be the same on all nodes", key)
		}
	}
}
