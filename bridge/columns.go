package bridge

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/wire"
)

// columns says which nodes have the values of columns of which topology.columns says it.
type columns map[capture.TableName][]wire.ColumnNodes

func columnsOf(cfg *config.Config) columns {
	all := columns{}
	for _, s := range cfg.Topology.Columns {
		p, ok := config.SplitColumn(s)
		if !ok {
			continue // who checked the configuration has said so
		}
		name := capture.TableName{Schema: p.Schema, Name: p.Table}
		all[name] = append(all[name], wire.ColumnNodes{Name: p.Column, Nodes: p.Nodes})
	}
	return all
}

// of returns the columns of a table of which only some nodes have the values.
func (c columns) of(schema, table string) []wire.ColumnNodes {
	return c[capture.TableName{Schema: schema, Name: table}]
}

// byTable is of; nil, if there are no such columns.
func (c columns) byTable() func(schema, table string) []wire.ColumnNodes {
	if len(c) == 0 {
		return nil
	}
	return c.of
}

// columnPlaces are the columns as apply has them.
func columnPlaces(cfg *config.Config) apply.ColumnPlaces {
	return apply.ColumnPlaces{Setting: strings.Join(slices.Sorted(slices.Values(cfg.Topology.Columns)), ","), Of: columnsOf(cfg).byTable()}
}

// names are the tables', in order.
func (c columns) names() []capture.TableName {
	return slices.SortedFunc(maps.Keys(c), func(a, b capture.TableName) int { return strings.Compare(a.String(), b.String()) })
}

// lacks is a column whose values other has, and node may not have; empty: there is none.
func (c columns) lacks(node, other string) string {
	for _, name := range c.names() {
		for _, x := range c[name] {
			if x.At(other) && !x.At(node) {
				return fmt.Sprintf("column %s of %s.%s", x.Name, name.Schema, name.Name)
			}
		}
	}
	return ""
}

// groups are the nodes that have a column, with the one that has written it.
func (c columns) groups(everybody []string) (all groups) {
	for _, name := range c.names() {
		for _, x := range c[name] {
			all.addAuthored(x.Nodes, everybody)
		}
	}
	return all
}
