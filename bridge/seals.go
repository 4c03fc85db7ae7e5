package bridge

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Rows and values that only some nodes have (topology.residency, topology.rows, topology.columns) are sealed in frames, if pgbridge keys has made keys for it: who hands
// frames on for others can then not read them.

// sealPattern is for the files of keys in a node's directory, one for each group of nodes that have a table, a row, or a column. Each line is a key: the first
// one seals, all open.
const sealPattern = "rows-*.key"

func sealFile(group string) string {
	return strings.Replace(sealPattern, "*", strings.ReplaceAll(group, " ", "+"), 1)
}

// groups are the nodes that have a table, of all tables that a configuration may be for.
func (r residency) groups() (all groups) {
	for _, x := range r {
		for _, g := range all {
			all.add(both(g, x.nodes)) // of a table that both are for
		}
		all.add(x.nodes)
	}
	return all
}

// groups are sets of nodes that have a key together.
type groups [][]string

func (all *groups) add(nodes []string) {
	nodes = strings.Fields(wire.Group(nodes))
	if len(nodes) > 0 && !slices.ContainsFunc(*all, func(g []string) bool { return slices.Equal(g, nodes) }) {
		*all = append(*all, nodes)
	}
}

// groups are the nodes that have a row and the one that has written it, which may have moved it to them.
func (p placed) groups(everybody []string) (all groups) {
	for _, name := range p.names() {
		for _, value := range append(p[name].Values(), wire.OtherValues) {
			if nodes := p[name].Nodes[value]; nodes != nil {
				all.addAuthored(nodes, everybody)
			}
		}
	}
	return all
}

// addAuthored adds nodes, and these with each node that may write what they have.
func (all *groups) addAuthored(nodes, everybody []string) {
	all.add(nodes)
	for _, author := range everybody {
		all.add(append(slices.Clone(nodes), author))
	}
}

// sealGroups are all groups that have a key.
func sealGroups(cfg *config.Config) groups {
	all := residencyOf(cfg).groups()
	for _, nodes := range slices.Concat(placedOf(cfg).groups(cfg.Graph().Nodes()), columnsOf(cfg).groups(cfg.Graph().Nodes())) {
		all.add(nodes)
	}
	return all
}

func both(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(node string) bool { return !slices.Contains(b, node) })
}

// group is the nodes that have a table; empty: all.
func (r residency) group(schema, table string) string {
	var nodes []string
	for _, x := range r {
		if x.is(schema, table) {
			if nodes == nil {
				nodes = x.nodes
			}
			nodes = both(nodes, x.nodes)
		}
	}
	return wire.Group(nodes)
}

// seals are what a node seals rows by, and opens them.
type seals struct {
	open    *wire.Opener
	sealers map[string]*wire.Sealer // by group
	reside  residency
	own     string
}

// readSeals reads the keys in nats.keys_dir.
func readSeals(cfg *config.Config, own origin.Origin) (*seals, error) {
	s := &seals{sealers: map[string]*wire.Sealer{}, reside: residencyOf(cfg), own: cfg.Node}
	if len(s.reside) == 0 && len(placedOf(cfg)) == 0 && len(columnsOf(cfg)) == 0 {
		return s, nil
	}
	var all [][]byte
	if dir := cfg.NATS.KeysDir; dir != "" {
		files, err := filepath.Glob(filepath.Join(dir, sealPattern))
		if err != nil {
			return nil, err
		}
		first := map[string][]byte{} // of each file
		for _, file := range files {
			keys, err := readSealKeys(file)
			if err != nil {
				return nil, keysFault(cfg, err)
			}
			all, first[file] = append(all, keys...), keys[0]
		}
		for _, nodes := range sealGroups(cfg) {
			group := wire.Group(nodes)
			file := filepath.Join(dir, sealFile(group))
			switch {
			case !slices.Contains(nodes, cfg.Node):
				continue
			case first[file] == nil:
				return nil, keysFault(cfg, fmt.Errorf("%s is not there", file))
			}
			prefix := make([]byte, wire.SealPrefixBytes)
			if _, err := rand.Read(prefix); err != nil {
				return nil, err
			}
			if s.sealers[group], err = wire.NewSealer(own, group, first[file], prefix); err != nil {
				return nil, err
			}
		}
	}
	var err error
	s.open, err = wire.NewOpener(cfg.Node, all)
	return s, err
}

// byTable tells what rows of a table are sealed by, nil: by nothing; nil, if that is so of all.
func (s *seals) byTable() func(schema, table string) *wire.Sealer {
	if len(s.sealers) == 0 {
		return nil
	}
	return func(schema, table string) *wire.Sealer { return s.sealers[s.reside.group(schema, table)] }
}

// byRow tells what a row, or a value, that this node writes is sealed by, for the nodes that have it; nil, if no row is.
func (s *seals) byRow() func(nodes []string) *wire.Sealer {
	if len(s.sealers) == 0 {
		return nil
	}
	return func(nodes []string) *wire.Sealer { return s.sealers[wire.Group(append(slices.Clone(nodes), s.own))] }
}

func readSealKeys(file string) (all [][]byte, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) != wire.SealKeyBytes {
			return nil, fmt.Errorf("%s has a line that is not %d bytes in base64", file, wire.SealKeyBytes)
		}
		all = append(all, key)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no key", file)
	}
	return all, nil
}

// makeSealKeys makes the keys of all groups, each in the directories of its nodes. What is there already stays, and is brought to the others.
func makeSealKeys(cfg *config.Config, dir string, tell func(string)) error {
	for _, g := range sealGroups(cfg) {
		name := sealFile(wire.Group(g))
		var text []byte
		for _, node := range g {
			there, err := os.ReadFile(filepath.Join(dir, node, name))
			if err == nil && text != nil && !bytes.Equal(there, text) {
				return fmt.Errorf("%s is not the same for the nodes %s; keep the right one", name, strings.Join(g, ", "))
			}
			if err == nil {
				text = there
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if text == nil {
			key := make([]byte, wire.SealKeyBytes)
			if _, err := rand.Read(key); err != nil {
				return err
			}
			text = []byte(base64.StdEncoding.EncodeToString(key) + "\n")
			tell("makes " + name + " for the nodes " + strings.Join(g, ", "))
		}
		for _, node := range g {
			if err := writeFile(filepath.Join(dir, node, name), text, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}
