package bridge

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/wire"
)

// placed says which nodes have which rows, of tables of which topology.rows says it.
type placed map[capture.TableName]*wire.Places

func placedOf(cfg *config.Config) placed {
	all := placed{}
	for _, s := range cfg.Topology.Rows {
		r, ok := config.SplitRows(s)
		if !ok {
			continue // who checked the configuration has said so
		}
		name := capture.TableName{Schema: r.Schema, Name: r.Table}
		if all[name] == nil {
			all[name] = &wire.Places{Column: r.Column, Nodes: map[string][]string{}}
		}
		all[name].Nodes[r.Value] = r.Nodes
	}
	return all
}

// of returns the places of a table's rows; nil: its rows are where it is.
func (p placed) of(schema, table string) *wire.Places {
	return p[capture.TableName{Schema: schema, Name: table}]
}

// byTable is of; nil, if there are no such tables.
func (p placed) byTable() func(schema, table string) *wire.Places {
	if len(p) == 0 {
		return nil
	}
	return p.of
}

// names are the tables', in order.
func (p placed) names() []capture.TableName {
	return slices.SortedFunc(maps.Keys(p), func(a, b capture.TableName) int { return strings.Compare(a.String(), b.String()) })
}

// lacks are rows that other has, and node may not have; empty: there are none.
func (p placed) lacks(node, other string) string {
	for _, name := range p.names() {
		for _, value := range append(p[name].Values(), wire.OtherValues) {
			if nodes := p[name].Nodes[value]; nodes != nil && slices.Contains(nodes, other) && !slices.Contains(nodes, node) {
				return fmt.Sprintf("rows of %s.%s with %s=%s", name.Schema, name.Name, p[name].Column, value)
			}
		}
	}
	return ""
}

// lacks says what other has, and node may not have, and which setting says so; empty: nothing.
func lacks(cfg *config.Config, node, other string) (what, setting string) {
	if pattern := residencyOf(cfg).lacking(node, other); pattern != "" {
		return "tables " + pattern, "topology.residency"
	}
	if rows := placedOf(cfg).lacks(node, other); rows != "" {
		return rows, "topology.rows"
	}
	return columnsOf(cfg).lacks(node, other), "topology.columns"
}
