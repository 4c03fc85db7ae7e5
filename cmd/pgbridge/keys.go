package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newKeys(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var dir string
	cmd := &cobra.Command{
		Use:   "keys --config file --out directory",
		Short: "Make TLS certificates and keys for all nodes",
		Long: `Make, for each node of topology.nodes, a directory that nats.keys_dir is to name on that node: a TLS certificate of an
authority of the cluster's own, and an nkey. The servers inside the bridges then encrypt, and let each node do what it needs
and no more (docs/security.md). What is there already is kept; run it again, where the authority's key is, for a new node, and
bring each node its file named nodes.

The directory holds the secrets of all nodes, and ca.key, with which more can be made: keep it where none of the nodes is.`,
		Example: `  pgbridge keys --config /etc/pgbridge/pgbridge.yaml --out keys
  scp -r keys/a/. a.example.com:/etc/pgbridge/keys/`,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			if dir == "" {
				return usagef("keys needs --out with a directory to make the keys in")
			}
			if err := b.makeKeys(cfg, dir, c.tell); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "the keys of %d nodes are in %s\n", len(cfg.Topology.Nodes), dir)
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&dir, "out", "", "directory to make the keys in")
	return cmd
}
