# A node of the cluster. Its name is the name of its machine.
set -eu
systemctl stop etcd
rm -rf /var/lib/etcd/default # of the package, which starts a cluster of one node
me=$(hostname)
cat > /etc/default/etcd <<END
ETCD_NAME=$me
ETCD_LISTEN_PEER_URLS=http://0.0.0.0:2380
ETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379
ETCD_INITIAL_ADVERTISE_PEER_URLS=http://$me:2380
ETCD_ADVERTISE_CLIENT_URLS=http://$me:2379
ETCD_INITIAL_CLUSTER=node-1=http://node-1:2380,node-2=http://node-2:2380,node-3=http://node-3:2380
ETCD_INITIAL_CLUSTER_STATE=new
END
systemctl enable --now --no-block etcd
