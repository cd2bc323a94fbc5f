package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/agent/api"
)

func shells() []string { return []string{"bash", "zsh", "fish"} }

func newCompletion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a script that completes commands, flags and names in a shell",
		Long: `Print a script with which a shell completes commands, flags, output formats, and
the names of services and clusters that the agent of this node knows.

bash needs its package bash-completion.`,
		Example: "  clustermesh completion bash > /etc/bash_completion.d/clustermesh\n" +
			"  clustermesh completion zsh > /usr/local/share/zsh/site-functions/_clustermesh\n" +
			"  clustermesh completion fish > ~/.config/fish/completions/clustermesh.fish",
		ValidArgs: shells(),
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.ExactArgs(1)(cmd, args); err != nil {
				return err
			}
			return cobra.OnlyValidArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			}
			return usage(fmt.Errorf("shell %q: use %s", args[0], strings.Join(shells(), ", ")))
		},
	}
}

// completeFormats lets a shell complete --output.
func completeFormats(root *cobra.Command) error {
	return root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats(), cobra.ShellCompDirectiveNoFileComp))
}

// completionLimit bounds the question behind a completion: somebody waits with
// a finger on the key.
const completionLimit = 2 * time.Second

// completeFrom completes the first argument of a command with names that the
// agent of this node knows; nothing if it does not answer.
func completeFrom(c *cobra.Command, names func(context.Context, api.AgentClient) ([]string, error)) *cobra.Command {
	c.ValidArgsFunction = func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		socket, err := c.Flags().GetString("api-socket")
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		conn, client, err := dialAgent(socket)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), completionLimit)
		defer cancel()
		found, err := names(ctx, client)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
	return c
}

func serviceNames(ctx context.Context, agent api.AgentClient) ([]string, error) {
	r, err := agent.Services(ctx, &api.ServicesRequest{})
	var names []string
	for _, s := range r.GetServices() {
		names = append(names, s.GetNamespace()+"/"+s.GetName())
	}
	return names, err
}

func remoteNames(ctx context.Context, agent api.AgentClient) ([]string, error) {
	r, err := agent.Status(ctx, &api.StatusRequest{})
	var names []string
	for _, c := range r.GetClusters() {
		if !c.GetLocal() {
			names = append(names, c.GetName())
		}
	}
	return names, err
}
