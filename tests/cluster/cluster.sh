#!/usr/bin/env bash
# A whole Slurm cluster on one machine, for as long as its standard input stays open.
#
#   cluster.sh FOLDER        namespaces: network, mounts, processes, host name
#   ├── login  10.77.0.254   munged, slurmctld, bridge br0; no way out of here
#   ├── n1     10.77.0.1     slurmd, with a network, mounts and host name of its own
#   ├── n2 … n4
#   └── FOLDER/ slurm.conf, log/, spool/, run/NODE.pid, run/ready, disk/ (48 MB, seen in here only)
#
# With ACCOUNTING=1 in the environment login has mariadbd and slurmdbd too, and so sacct.
#
# The first process in a process namespace takes all others with it, so nothing is left behind,
# however the one that started this ends.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
FOLDER=$1
if [ "${2:-}" != inside ]; then
	exec unshare --net --mount --uts --pid --fork --mount-proc --kill-child \
		bash "${BASH_SOURCE[0]}" "$FOLDER" inside
fi

NODES="1 2 3 4"
mkdir -p "$FOLDER"/{log,spool,run,state}
cd "$FOLDER"
hostname login

cat >hosts <<-END
	127.0.0.1 localhost
	10.77.0.254 login
	$(for n in $NODES; do echo "10.77.0.$n n$n"; done)
END
mount --bind hosts /etc/hosts

# A small disk to fill, which all nodes see.
mkdir -p disk
mount -t tmpfs -o size=48M disk disk

ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.254/24 dev br0
ip link set br0 up

# A node is lost 90 s after its last answer. A ping is sent every 30 s, and a link may be cut for 30 s, after
# which TCP may take 30 s more to send again: 60 s would take such a node for lost. A requeued job starts in 6.
# A step tells an srun that is gone for MessageTimeout; UnkillableStepTimeout is five times that, as Slurm
# wants it, or the node is drained meanwhile ("Kill task failed").
cat >slurm.conf <<-END
	ClusterName=tests
	SlurmctldHost=login(10.77.0.254)
	SlurmUser=root
	SlurmdUser=root
	AuthType=auth/munge
	AuthInfo=socket=$FOLDER/run/munge.socket,cred_expire=5
	StateSaveLocation=$FOLDER/state
	SlurmdSpoolDir=$FOLDER/spool/%n
	SlurmctldPidFile=$FOLDER/run/slurmctld.pid
	SlurmdPidFile=$FOLDER/run/slurmd-%n.pid
	SlurmctldLogFile=$FOLDER/log/slurmctld.log
	SlurmdLogFile=$FOLDER/log/slurmd-%n.log
	ProctrackType=proctrack/linuxproc
	TaskPlugin=task/none
	SwitchType=switch/none
	MpiDefault=none
	JobAcctGatherType=jobacct_gather/none
	$(if [ -n "${ACCOUNTING:-}" ]; then
		echo AccountingStorageType=accounting_storage/slurmdbd
		echo AccountingStorageHost=login
		echo "AccountingStoragePass=$FOLDER/run/munge.socket"
	else
		echo AccountingStorageType=accounting_storage/none
	fi)
	SelectType=select/cons_tres
	SelectTypeParameters=CR_Core
	SlurmdParameters=config_overrides
	SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5,sched_min_interval=0
	JobRequeue=1
	ReturnToService=2
	MessageTimeout=60
	SlurmdTimeout=90
	KillWait=10
	UnkillableStepTimeout=300
	MinJobAge=3600
	TreeWidth=16
	NodeName=n[1-2] NodeAddr=10.77.0.[1-2] CPUs=16 Weight=9 State=UNKNOWN
	NodeName=n[3-4] NodeAddr=10.77.0.[3-4] CPUs=16 Weight=1 State=UNKNOWN
	PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$FOLDER/slurm.conf

(umask 077 && head -c 1024 /dev/urandom >munge.key)
munged --foreground --force --key-file="$FOLDER/munge.key" --socket="$FOLDER/run/munge.socket" \
	--pid-file="$FOLDER/run/munged.pid" --seed-file="$FOLDER/run/munged.seed" \
	--log-file="$FOLDER/log/munged.log" &
until [ -S run/munge.socket ]; do sleep 0.1; done
if [ -n "${ACCOUNTING:-}" ]; then
	# No tables of its own and nobody to let in or keep out: the network ends here.
	mkdir db
	mariadbd --no-defaults --user=root --datadir="$FOLDER/db" --socket="$FOLDER/run/db.socket" \
		--bind-address=127.0.0.1 --skip-grant-tables --innodb-buffer-pool-size=64M &>log/mariadbd.out &
	until (: </dev/tcp/127.0.0.1/3306) 2>/dev/null; do sleep 0.1; done
	cat >slurmdbd.conf <<-END
		DbdHost=login
		SlurmUser=root
		AuthType=auth/munge
		AuthInfo=socket=$FOLDER/run/munge.socket
		LogFile=$FOLDER/log/slurmdbd.log
		PidFile=$FOLDER/run/slurmdbd.pid
		StorageType=accounting_storage/mysql
		StorageHost=127.0.0.1
		StorageUser=root
	END
	chmod 600 slurmdbd.conf
	slurmdbd -D &>log/slurmdbd.out &
	until (: </dev/tcp/10.77.0.254/6819) 2>/dev/null; do sleep 0.1; done
	sacctmgr -i add cluster tests &>log/sacctmgr.out
fi
slurmctld -D &>log/slurmctld.out &

for n in $NODES; do
	unshare --net --mount --uts bash -c "
		hostname n$n
		until ip link show eth0 &>/dev/null; do sleep 0.05; done
		ip link set lo up
		ip addr add 10.77.0.$n/24 dev eth0
		ip link set eth0 up
		echo up >$FOLDER/run/n$n.up
		while sleep 3600; do :; done" &
	# The namespace is there once its host name is another one than ours.
	until [ "$(nsenter --target $! --uts hostname)" = "n$n" ]; do sleep 0.05; done
	ip link add "port$n" type veth peer name eth0 netns $!
	ip link set "port$n" master br0 up
	echo $! >"run/n$n.pid"
	until [ -e "run/n$n.up" ]; do sleep 0.05; done
	nsenter --target $! --net --mount --uts slurmd -D -N "n$n" &>"log/slurmd-n$n.out" &
done
until [ "$(sinfo --noheader --format=%D --states=idle 2>/dev/null)" = 4 ]; do sleep 0.2; done
echo ready >run/ready
cat >/dev/null # until the other end closes
