package e2e

import "testing"

// TestMainJob is the product's main job on real parts. The checks share one
// world and run one after the other; each leaves it as it found it.
func TestMainJob(t *testing.T) {
	w := newWorld(t)
	checks := func(steps ...check) {
		for _, s := range steps {
			t.Run(s.name, func(t *testing.T) { s.run(t, w) })
		}
	}
	checks(
		check{"ground_direct", checkGround},
		check{"ground_other_load_balancer", checkUntouched},
	)
	w.up(t)
	checks(
		check{"a_even_shares_and_peers", checkReach},
		check{"a_other_services_untouched", checkUntouched},
		check{"a_beside_kube_proxy", checkBesideKubeProxy},
		check{"a_packets", checkPackets},
		check{"a_node_ports", checkNodePorts},
		check{"a_monitor", checkMonitor},
		check{"status_acknowledged", checkAcknowledged},
		check{"status_faults", checkFaultsShow},
		check{"b_flips", checkFlips},
		check{"b_hand_over", checkHandOver},
		check{"b_no_backend", checkNoBackend},
		check{"c_kills", checkKills},
		check{"c_restart", checkRestart},
		check{"c_repair", checkRepair},
		check{"c_privileges", checkPrivileges},
		check{"c_least_privilege", checkLeastPrivilege},
		check{"d_empty_store", checkEmptyStore},
		check{"e_drain", checkDrain},
		check{"e_stop", checkStop},
		check{"e_cleanup", checkCleanup},
		check{"f_intruders", checkIntruders},
		check{"f_read_only", checkReadOnly},
		check{"conformance", checkConformance},
		check{"g_bad_cluster_files", checkBadClusterFiles},
		check{"g_impostors", checkImpostors},
		check{"g_bad_manifests", checkBadManifests},
		check{"h_no_growth", checkGrowth},
		check{"figures_propagation", checkPropagation},
		check{"figures_footprint", checkFootprint},
		check{"h_nothing_left", checkNothingLeft},
		check{"demo", checkDemo},
	)
}

// check is one named part of a test.
type check struct {
	name string
	run  func(*testing.T, *world)
}
