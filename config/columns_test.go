package config

import (
	"slices"
	"testing"
)

// TestColumnsThatGo: columns that are decided by themselves, or with others that are on the same nodes.
func TestColumnsThatGo(t *testing.T) {
	for columns, tables := range map[string]string{
		"app.item.n=hub report":                        "*.item: n=delta",
		"app.item.n=kiosk hub laptop":                  `*.item: "*"=last_writer_wins`,
		"app.item.n=hub report,app.item.v=report hub ": `*.item: "*"=last_writer_wins, (n, v)="function app.f"`,
	} {
		path := write(t, "pgbridge.yaml", "node: hub\n"+devices)
		cfg, err := Load(path, map[string]string{"topology.columns": columns, "conflict.tables": tables})
		if err != nil {
			t.Errorf("%s with %s: %v", columns, tables, err)
			continue
		}
		p, ok := SplitColumn(cfg.Topology.Columns[0])
		if !ok || p.Name() != "app.item" || p.Column != "n" || !slices.Contains(p.Nodes, "hub") {
			t.Errorf("%s is read as %+v", columns, p)
		}
	}
}
